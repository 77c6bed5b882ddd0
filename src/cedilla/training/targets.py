"""What the label column or columns of a table ask a model to learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cedilla.errors import InputError, Problem
from cedilla.metrics.classification import METRICS, classification_metrics
from cedilla.metrics.columns import Floats, mean_of_defined
from cedilla.metrics.multilabel import MULTILABEL_METRICS, multilabel_metrics
from cedilla.metrics.per_base import PER_BASE_METRICS, per_base_metrics
from cedilla.metrics.regression import REGRESSION_METRICS, regression_metrics
from cedilla.training.label_columns import (
    Kind,
    LabelColumns,
    almost_fractions,
    almost_yes_or_no,
    chosen_columns,
    infer_kind,
    some,
)
from cedilla.training.label_values import Labels, read_bases, read_classes, read_numbers

DIRECTION: dict[str, Literal["higher", "lower"]] = {
    **dict.fromkeys((*METRICS, "pearson", "spearman", "r2", "top_k"), "higher"),
    **dict.fromkeys(("mse", "mae", "brier", "loss"), "lower"),
}
_METRICS: dict[Kind, tuple[str, ...]] = {
    "classes": METRICS,
    "multilabel": MULTILABEL_METRICS,
    "regression": REGRESSION_METRICS,
    "fraction": REGRESSION_METRICS,
    "per_base": PER_BASE_METRICS,
}
_CHOOSES: dict[Kind, str] = {
    "classes": "mcc",
    "multilabel": "auroc",
    "regression": "pearson",
    "fraction": "spearman",
    "per_base": "auprc",
}
_ONE_COLUMN: tuple[Kind, ...] = ("classes", "per_base")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is learnt, from which columns.

    kind: `classes` one class a sequence; `multilabel` yes or no in each column; `regression`
    numbers; `fraction` numbers in [0, 1], such as beta values; `per_base` one class a base.
    names: of the outputs: of the classes, else of the columns. center, spread: of a regression's
    training labels, by column; a model predicts (label - center) / spread.
    """

    kind: Kind
    columns: tuple[str, ...]
    names: tuple[str, ...]
    center: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    def __str__(self) -> str:
        one = f"column {self.columns[0]!r}"
        what = one if len(self.columns) == 1 else f"{len(self.columns):,} columns"
        listed = "" if len(self.columns) == 1 else f" ({some(self.columns)})"
        means = {
            "classes": f"{len(self.names):,} classes ({some(self.names)})",
            "multilabel": "yes or no" + listed,
            "regression": "numbers" + listed,
            "fraction": "fractions from 0 to 1" + listed,
            "per_base": f"a class for every base ({some(self.names[1:])}; {self.names[0]} is none)",
        }
        return f"{what}: {means[self.kind]}"

    @property
    def outputs(self) -> int:
        """Logits a sequence, or a base."""
        return len(self.names)

    @property
    def metric(self) -> str:
        """The metric that chooses the best epoch, unless another one is named."""
        return _CHOOSES[self.kind]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of this kind, every one with its :data:`DIRECTION`."""
        return _METRICS[self.kind]

    def predictions(self, logits: Tensor) -> np.ndarray:
        """What logits (…, outputs) say: probabilities, fractions, or numbers in labels' units."""
        logits = logits.detach().float().cpu()
        if self.kind in ("classes", "per_base"):
            return torch.softmax(logits, dim=-1).numpy()
        if self.kind in ("multilabel", "fraction"):
            return torch.sigmoid(logits).numpy()
        return (logits * torch.tensor(self.spread) + torch.tensor(self.center)).numpy()

    def score(self, labels: Labels, predictions: Any) -> dict[str, float]:
        """The kind's :attr:`metrics`, and `n`, how many rows have a label.

        Means over columns, or over all classes of bases but 0; `left_out` says how many of these
        had no value of :attr:`metric`. NaN where no column has one.

        Parameters
        ----------
        labels:
            (N,) classes; (N, T), NaN where missing; or N arrays (L_i,), -1 where missing.
        predictions:
            As :meth:`predictions` gives them: (N, C); (N, T); or N arrays (L_i, C).
        """
        if self.kind == "classes":
            return classification_metrics(np.asarray(labels), predictions)
        values = self._values(labels, predictions)
        means = {name: mean_of_defined(columns) for name, columns in values.items()}
        left_out = int(np.isnan(values[self.metric]).sum())
        return means | {"n": _labelled(self.kind, labels), "left_out": left_out}

    def score_each(self, labels: Labels, predictions: Any) -> dict[str, dict[str, float]]:
        """The metrics of each column, or of each class of bases but 0, by its name.

        Arguments as in :meth:`score`. One class a sequence is scored as a whole only: {}.
        """
        if self.kind == "classes":
            return {}
        values = self._values(labels, predictions)
        names = self.names[1:] if self.kind == "per_base" else self.names
        return {
            name: {metric: float(columns[k]) for metric, columns in values.items()}
            for k, name in enumerate(names)
        }

    def scaled_to(self, labels: Labels) -> Target:
        """The same target, with center and spread of these training labels (N, T)."""
        if self.kind != "regression":
            return self
        values = np.ma.masked_invalid(np.asarray(labels, dtype=np.float64))
        center, spread = values.mean(axis=0).filled(0.0), values.std(axis=0).filled(1.0)
        spread = np.where(spread > 0, spread, 1.0)  # of drawn rows that are all alike
        return replace(self, center=tuple(center.tolist()), spread=tuple(spread.tolist()))

    def _values(self, labels: Labels, predictions: Any) -> dict[str, Floats]:
        if self.kind == "per_base":
            return per_base_metrics(list(labels), predictions)
        measure = multilabel_metrics if self.kind == "multilabel" else regression_metrics
        return measure(np.asarray(labels), predictions)


def read_target(
    tables: Mapping[str, pd.DataFrame],
    columns: tuple[str, ...],
    *,
    kind: Kind | None,
    paths: Mapping[str, Path],
    lengths: Mapping[str, np.ndarray],
    notes: list[Problem],
) -> tuple[Target, dict[str, Labels]]:
    """The target that the training labels set, and each split's labels.

    Parameters
    ----------
    tables:
        Frames of the splits, one of them ``train``, as :mod:`cedilla.dna.tables` reads them,
        without the columns of sequences and ids. A column of a label a base must be as written.
    columns:
        Names or shell patterns of the label columns.
    kind:
        None takes what the training labels look like.
    paths:
        Of the splits' files.
    lengths:
        Of the splits' sequences, (N,).
    notes:
        Gets a warning, with counts, for what is left out of the training or the metrics.

    Returns
    -------
    tuple
        The target, and labels by split: (N,) int64 classes; (N, T) float32, NaN where missing; or
        N arrays (L_i,) int8 of the bases' classes, -1 where missing.

    Raises
    ------
    InputError
        With all that is wrong with the labels of all splits.
    """
    names = chosen_columns(columns, tables, paths)
    splits = [
        LabelColumns(
            split=split, frame=frame[list(names)], path=paths[split], lengths=lengths[split]
        )
        for split, frame in sorted(tables.items(), key=lambda item: item[0] != "train")
    ]
    found = infer_kind(splits[0]) if kind is None else kind
    if found in _ONE_COLUMN and len(names) > 1:
        what = f"--target {found} takes one label column, not {some(names)}"
        raise InputError.one(paths["train"], what, "name one, or another target")
    if found == "classes":
        read = read_classes(splits)
    elif found == "per_base":
        read = read_bases(splits)
    else:
        read = read_numbers(found, splits)
    target = Target(kind=found, columns=names, names=read.names)
    problems = list(dict.fromkeys(read.problems))
    if errors := [problem for problem in problems if problem.severity == "error"]:
        guessed = kind is None and found != "classes"
        raise InputError(errors + ([_inferred(target, paths["train"])] if guessed else []))
    notes += problems
    if kind is None and found == "regression":
        notes += almost_fractions(splits[0]) + almost_yes_or_no(splits[0])
    return target.scaled_to(read.labels["train"]), read.labels


def _inferred(target: Target, path: Path) -> Problem:
    """A word on why the labels were read as they were."""
    what = f"the label was read as {target.kind}, which its values look like"
    return Problem(where=str(path), what=what, mend="pass another --target", severity="note")


def _labelled(kind: Kind, labels: Labels) -> int:
    """How many rows have a label."""
    if kind == "per_base":
        return sum(bool((row >= 0).any()) for row in labels)
    return int((~np.isnan(np.asarray(labels))).any(axis=1).sum())
