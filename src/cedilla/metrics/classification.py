"""Metrics of classifiers, as pure functions of labels and predicted probabilities.

Every metric also takes integer row weights, many sets at once: a bootstrap draw is a count per
row, so thousands of draws cost one sort and a few matrix passes. Values equal scikit-learn's.

Shapes: N rows, C classes, D sets of weights, G groups of rows with equal probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]

METRICS = ("accuracy", "f1", "precision", "recall", "mcc", "auroc", "auprc")
RANK_METRICS = ("auroc", "auprc")


def classification_metrics(
    labels: ArrayLike, probabilities: ArrayLike, *, threshold: float = 0.5
) -> dict[str, float]:
    """All metrics of one set of predictions.

    Parameters
    ----------
    labels:
        (N,) class numbers: 0 and 1, or 0 … C-1.
    probabilities:
        (N,) of class 1, or (N, C) of every class. With C = 2 the second column is taken.
    threshold:
        A row is called class 1 when its probability is at least this. For C > 2 the call is the
        most probable class.

    Returns
    -------
    dict
        `METRICS`, `n`, and `prevalence`: the AUPRC of a constant prediction, which for two
        classes is the share of class 1. For C > 2, F1, precision, recall, AUROC and AUPRC are
        unweighted means over classes (one against rest); the two areas leave out a class without
        rows. `auroc` and `auprc` are NaN when the labels hold one class only.
    """
    scorer = Scorer(labels, probabilities, threshold=threshold)
    values = {name: float(draws[0]) for name, draws in scorer().items()}
    return values | {"n": len(scorer.labels), "prevalence": scorer.prevalence}


@overload
def auroc(labels: ArrayLike, scores: ArrayLike, weights: None = None) -> float: ...
@overload
def auroc(labels: ArrayLike, scores: ArrayLike, weights: Integers) -> Floats: ...
def auroc(labels: ArrayLike, scores: ArrayLike, weights: Integers | None = None) -> float | Floats:
    """Area under the ROC curve; tied scores count half. NaN where one class has no weight.

    `labels` (N,) of 0 and 1, `scores` (N,), integer `weights` (D, N) → (D,), or a float.
    """
    values = Ranking(np.asarray(labels), np.asarray(scores)).areas(weights)["auroc"]
    return float(values[0]) if weights is None else values


@overload
def auprc(labels: ArrayLike, scores: ArrayLike, weights: None = None) -> float: ...
@overload
def auprc(labels: ArrayLike, scores: ArrayLike, weights: Integers) -> Floats: ...
def auprc(labels: ArrayLike, scores: ArrayLike, weights: Integers | None = None) -> float | Floats:
    """Average precision: precision at each distinct score, weighted by the recall it adds.

    Shapes as in :func:`auroc`. NaN where one class has no weight, because then nothing is ranked.
    """
    values = Ranking(np.asarray(labels), np.asarray(scores)).areas(weights)["auprc"]
    return float(values[0]) if weights is None else values


@overload
def mcc(labels: ArrayLike, predicted: ArrayLike, weights: None = None) -> float: ...
@overload
def mcc(labels: ArrayLike, predicted: ArrayLike, weights: Integers) -> Floats: ...
def mcc(labels: ArrayLike, predicted: ArrayLike, weights: Integers | None = None) -> float | Floats:
    """Matthews correlation of classes `labels` (N,) and `predicted` (N,), for any C.

    With integer `weights` (D, N) → (D,), else a float. 0 where either side holds one class only.
    Source: Gorodkin, Comput. Biol. Chem. 28 (2004) 367–374, for C > 2.
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    classes = int(max(labels.max(), predicted.max())) + 1
    values = _mcc(Confusion(labels, predicted, classes).counts(weights))
    return float(values[0]) if weights is None else values


def best_threshold(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The threshold on `probabilities` (N,) that gives the highest MCC on these rows.

    All thresholds between two neighbouring probabilities call the same classes; the middle of
    the best such interval is returned, of the widest one where several are best, and of the
    lowest of those. 0.5 where the labels hold one class only. Choose it on dev rows, per model
    and seed, never on the rows that are reported.
    """
    scorer = Scorer(labels, probabilities, metrics=())
    labels, p = scorer.labels, scorer.probabilities
    if p.ndim == 2:
        raise ValueError("a threshold is for two classes; more are called by the highest one")
    if labels.min() == labels.max():
        return 0.5
    values, group = np.unique(p, return_inverse=True)
    edges = np.concatenate([[0.0], values, [1.0]])
    low, high = edges[:-1], edges[1:]
    tp = _at_or_above(np.bincount(group[labels == 1], minlength=len(values)))
    fp = _at_or_above(np.bincount(group[labels == 0], minlength=len(values)))
    tn, fn = fp[0] - fp, tp[0] - tp
    scores = _mcc(np.stack([[tn, tp], [tn + fp, fn + tp], [tn + fn, fp + tp]]).transpose(2, 0, 1))
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    cut = best[np.argmax((high - low)[best])]
    middle = (low[cut] + high[cut]) / 2
    # Between neighbouring floats the middle rounds to one of them; only the upper one separates.
    return float(middle if middle > low[cut] else high[cut])


class Scorer:
    """One set of predictions made ready to be scored under many row weights.

    Raises :class:`ValueError` for arrays that are empty, of unequal length, not finite, outside
    [0, 1], or with labels that are no class numbers.
    """

    def __init__(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        *,
        threshold: float = 0.5,
        metrics: Sequence[str] = METRICS,
    ) -> None:
        if unknown := sorted(set(metrics) - set(METRICS)):
            raise ValueError(f"no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
        self.metrics = tuple(metrics)
        self.labels, self.probabilities = _checked(labels, probabilities)
        labels, p = self.labels, self.probabilities
        classes = 2 if p.ndim == 1 else p.shape[1]
        self.predicted = (p >= threshold).astype(np.int64) if p.ndim == 1 else p.argmax(axis=1)
        self._confusion = Confusion(labels, self.predicted, classes)
        columns = [(1, p)] if p.ndim == 1 else list(enumerate(p.T))
        # A class that no row has leaves its one-against-rest curve undefined in every draw.
        present = [(k, column) for k, column in columns if np.any(labels == k)]
        ranked = present if set(metrics) & set(RANK_METRICS) else []
        self._rankings = [Ranking(labels == k, column) for k, column in ranked]
        self.prevalence = float(np.mean([np.mean(labels == k) for k, _ in present or columns]))

    def __call__(self, weights: Integers | None = None) -> dict[str, Floats]:
        """Each metric as (D,), given integer `weights` (D, N); None weighs every row once."""
        values: dict[str, Floats] = {}
        if set(self.metrics) - set(RANK_METRICS):
            values |= _count_metrics(self._confusion.counts(weights))
        if set(self.metrics) & set(RANK_METRICS):
            draws = 1 if weights is None else len(weights)
            areas = [ranking.areas(weights) for ranking in self._rankings]
            for name in RANK_METRICS:
                stacked = np.array([area[name] for area in areas]).reshape(-1, draws)
                values[name] = _mean_of_defined(stacked)
        return {name: values[name] for name in self.metrics}


class Ranking:
    """Rows sorted by descending score once, for areas under curves at any row weights."""

    def __init__(self, positive: NDArray, scores: NDArray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._positive = (positive[self._order] == 1).astype(np.int32)

    def areas(self, weights: Integers | None = None) -> dict[str, Floats]:
        """`auroc` and `auprc`, each (D,), given integer `weights` (D, N)."""
        weights = _counts(weights, len(self._order))
        # int32 sums are exact and eight times as fast as float64 ones.
        ordered = np.take(weights, self._order, axis=1)
        tp = np.cumsum(ordered * self._positive, axis=1, dtype=np.int32)[:, self._ends]
        called = np.cumsum(ordered, axis=1, dtype=np.int32)[:, self._ends]
        positives, negatives = tp[:, -1].astype(float), (called - tp)[:, -1].astype(float)
        defined = (positives > 0) & (negatives > 0)
        new_tp = np.diff(tp, axis=1, prepend=np.int32(0))
        new_fp = np.diff(called - tp, axis=1, prepend=np.int32(0))
        # A new negative loses to the positives above it, and half to those it ties with.
        wins = np.einsum("dg,dg->d", new_fp, 2 * tp - new_tp, dtype=np.float64) / 2
        gained = np.einsum("dg,dg->d", new_tp, _ratio(tp, called), dtype=np.float64)
        return {
            "auroc": np.where(defined, _ratio(wins, positives * negatives), np.nan),
            "auprc": np.where(defined, _ratio(gained, positives), np.nan),
        }


class Confusion:
    """How often each class is called rightly, is the label, and is called, at any row weights.

    That is the confusion matrix's diagonal and its sums, all that the metrics need of it: three
    numbers a class, where the matrix itself would hold C of them.
    """

    def __init__(self, labels: NDArray, predicted: NDArray, classes: int) -> None:
        rows = np.arange(len(labels))
        cells = np.zeros((len(labels), 3, classes))
        cells[rows, 0, labels] = labels == predicted
        cells[rows, 1, labels] = 1
        cells[rows, 2, predicted] = 1
        self._cells = cells.reshape(len(labels), -1)

    def counts(self, weights: Integers | None = None) -> Floats:
        """(D, 3, C): hits, labels and calls of each class, given integer `weights` (D, N)."""
        flat = _counts(weights, len(self._cells)) @ self._cells
        return flat.reshape(len(flat), 3, -1)


def _count_metrics(counts: Floats) -> dict[str, Floats]:
    """Metrics of counts (D, 3, C): of class 1 for C = 2, else means over classes."""
    hit, actual, called = counts.swapaxes(0, 1)
    per_class = {
        "f1": _ratio(2 * hit, actual + called),
        "precision": _ratio(hit, called),
        "recall": _ratio(hit, actual),
    }
    if counts.shape[2] == 2:
        averaged = {name: values[:, 1] for name, values in per_class.items()}
    else:
        # A class that is neither present nor called says nothing, as in scikit-learn.
        seen = (actual + called) > 0
        averaged = {k: _ratio((v * seen).sum(1), seen.sum(1)) for k, v in per_class.items()}
    accuracy = _ratio(hit.sum(axis=1), actual.sum(axis=1))
    return {"accuracy": accuracy, **averaged, "mcc": _mcc(counts)}


def _mcc(counts: Floats) -> Floats:
    hit, actual, called = counts.swapaxes(0, 1)
    total, hits = actual.sum(axis=1), hit.sum(axis=1)
    covariance = hits * total - (actual * called).sum(axis=1)
    spread_actual = total**2 - (actual**2).sum(axis=1)
    spread_called = total**2 - (called**2).sum(axis=1)
    # One root of the product, because sqrt(x * x) is x exactly: a perfect score is exactly 1.
    return _ratio(covariance, np.sqrt(spread_actual * spread_called))


def _ratio(part: NDArray, whole: NDArray) -> Floats:
    """part / whole, and 0 where whole is 0."""
    zeros = np.zeros(np.broadcast_shapes(part.shape, whole.shape))
    return np.divide(part, whole, out=zeros, where=whole > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the first axis of (C, D), leaving out NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    return np.where(count > 0, _ratio(np.where(defined, values, 0).sum(axis=0), count), np.nan)


def _counts(weights: Integers | None, rows: int) -> NDArray[np.int32]:
    """`weights` as (D, N) int32; None is one draw of every row."""
    if weights is None:
        return np.ones((1, rows), dtype=np.int32)
    if weights.ndim != 2 or weights.shape[1] != rows or weights.dtype.kind not in "iu":
        raise ValueError(
            f"weights {weights.dtype} {weights.shape}: integers (D, {rows}) are needed"
        )
    return weights.astype(np.int32, copy=False)


def _at_or_above(group_counts: NDArray[np.integer]) -> Floats:
    """Rows at or above each of G ascending values, and 0 above the last: (G + 1,)."""
    return np.append(np.cumsum(group_counts[::-1])[::-1], 0).astype(np.float64)


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    labels, p = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or p.ndim not in (1, 2) or len(labels) != len(p) or len(labels) == 0:
        raise ValueError(
            f"labels {labels.shape} and probabilities {p.shape}: (N,) with (N,) or (N, C), N > 0"
        )
    if p.ndim == 2 and p.shape[1] < 2:
        raise ValueError("probabilities (N, 1): pass (N,) of class 1, or a column per class")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("probabilities must lie in [0, 1] and not be NaN; logits?")
    numbers = labels.astype(np.int64)
    classes = 2 if p.ndim == 1 else p.shape[1]
    if np.any(numbers != labels) or numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(f"labels must be class numbers 0 … {classes - 1}")
    return numbers, (p[:, 1] if p.shape[1:] == (2,) else p)
