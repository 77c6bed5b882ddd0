"""The arms of a comparison: the same learner and rows, and inputs that differ by one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Beta = Literal["none", "measured", "shuffled", "missing"]
THRESHOLD = "beta threshold"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """Which inputs an arm sees.

    ``shuffled`` betas are those of other rows of the same split; ``missing`` ones are all *not
    measured*. Both should bring nothing over sequence: where one does, the comparison is broken.
    """

    name: str
    sequence: bool = True
    annotation: bool = False
    beta: Beta = "none"


def arms(*, annotation: bool) -> list[Arm]:
    """The arms of every comparison; those with annotation only where there is some."""
    every = [
        Arm(name="sequence"),
        Arm(name="beta", sequence=False, beta="measured"),
        Arm(name="sequence+beta", beta="measured"),
        Arm(name="sequence+annotation", annotation=True),
        Arm(name="sequence+annotation+beta", annotation=True, beta="measured"),
        Arm(name="shuffled", beta="shuffled"),
        Arm(name="missing", beta="missing"),
    ]
    return [arm for arm in every if annotation or not arm.annotation]


def pairs(*, annotation: bool) -> list[tuple[str, str]]:
    """Which arms are compared: (arm, against). The first pair decides the verdict."""
    gain = [("sequence+beta", "sequence")]
    if annotation:
        gain.insert(0, ("sequence+annotation+beta", "sequence+annotation"))
    return [
        *gain,
        ("shuffled", "sequence"),
        ("missing", "sequence"),
        ("sequence+beta", "shuffled"),
        ("sequence+beta", "beta"),
    ]


def beta_of(arm: Arm, beta: np.ndarray, splits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The betas (N,) that an arm sees; shuffling stays within a split, so that none leaks."""
    if arm.beta == "missing":
        return np.full_like(beta, np.nan)
    if arm.beta == "shuffled":
        shuffled = beta.copy()
        for split in np.unique(splits):
            rows = np.flatnonzero(splits == split)
            shuffled[rows] = beta[rng.permutation(rows)]
        return shuffled
    return beta


def locus_features(
    arm: Arm,
    beta: np.ndarray,
    annotation: np.ndarray,
    splits: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """What an arm knows of a locus beside its sequence (N, F); NaN is *not measured*.

    beta (N,), annotation (N, A), splits (N,) names.
    """
    columns = [annotation] if arm.annotation else []
    if arm.beta != "none":
        columns.append(beta_of(arm, beta, splits, rng)[:, None])
    return np.concatenate(columns, axis=1) if columns else np.empty((len(beta), 0))
