"""Probabilities that mean what they say: temperature scaling, fitted on dev.

Source: Guo et al., ICML 2017 (arXiv:1706.04599). The labels that it is fitted to are smoothed as
Platt (1999) does, since few rows cannot show that a model is nearly always right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from cedilla.training.label_values import Labels
from cedilla.training.targets import Target

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What logits are divided by, so that probabilities are frequencies; 1 leaves them as they are.

    before, after: `ece`, `brier` and `log_loss` on dev; rows: labels that it was fitted to.
    """

    temperature: float = 1.0
    rows: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated logits, of any shape."""
        return logits / self.temperature


def calibrate(target: Target, logits: Tensor | Sequence[Tensor], labels: Labels) -> Calibration:
    """The calibration that dev rows ask for; regressions and fractions have none.

    Parameters
    ----------
    target:
        Its kind says how probabilities follow from logits.
    logits:
        (N, C), or for labels of single bases N tensors (S_i, C).
    labels:
        As :func:`cedilla.training.targets.read_target` gives them; missing ones are left out.
    """
    if target.kind not in ("classes", "multilabel", "per_base"):
        return Calibration()
    scores, classes = _as_classes(target, logits, labels)
    if not len(classes):
        return Calibration()
    temperature = fit_temperature(scores, classes)
    return Calibration(
        temperature=temperature,
        rows=len(classes),
        before=quality(log_softmax(scores, axis=1), classes),
        after=quality(log_softmax(scores / temperature, axis=1), classes),
    )


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature at which logits (N, C) give labels (N,) the least log loss.

    A row's label has the probability (n + 1) / (n + C), n being the rows of its class, and each
    other class 1 / (n + C).
    """
    N, C = logits.shape
    other = 1 / (np.bincount(labels, minlength=C)[labels] + C)
    of_label = logits[np.arange(N), labels]
    # Σ_c t_c · z_c of each row, of which the temperature changes the scale alone.
    aimed = other * logits.sum(axis=1) + (1 - C * other) * of_label

    def loss(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        return float((logsumexp(beta * logits, axis=1) - beta * aimed).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def quality(log_probabilities: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """`ece`, `brier` and `log_loss` of log probabilities (N, C) for labels (N,).

    `ece`: how far confidence is from accuracy, over 15 bins of the most probable class. `brier`:
    the mean squared error over all classes; for two classes that of one, as is usual.
    """
    p = np.exp(log_probabilities)
    N, C = p.shape
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    bin = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bin, weights=confidence - right, minlength=BINS)
    of_label = p[np.arange(N), labels]
    # Σ_c (p_c - [c = y])² without a matrix of labels.
    squared = (p**2).sum(axis=1) - 2 * of_label + 1
    return {
        "ece": float(np.abs(gaps).sum() / N),
        "brier": float(squared.mean() / (2 if C == 2 else 1)),
        "log_loss": float(-log_probabilities[np.arange(N), labels].mean()),
    }


def _as_classes(
    target: Target, logits: Tensor | Sequence[Tensor], labels: Labels
) -> tuple[Floats, NDArray[np.int64]]:
    """Logits (M, C) and classes (M,) of all that has a label: sequences, cells or bases."""
    if target.kind == "per_base":
        rows = [row.double().numpy() for row in logits]
        scores = np.concatenate([row[y >= 0] for row, y in zip(rows, labels, strict=True)])
        return scores, np.concatenate([y[y >= 0] for y in labels]).astype(np.int64)
    assert isinstance(logits, Tensor)
    values, known = logits.double().numpy(), np.asarray(labels)
    if target.kind == "classes":
        return values, known.astype(np.int64)
    # A sigmoid is the softmax over 0 and the logit.
    has_label = ~np.isnan(known)
    yes = values[has_label]
    return np.stack([np.zeros_like(yes), yes], axis=1), known[has_label].astype(np.int64)
