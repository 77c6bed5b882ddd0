"""Metrics of predicted numbers, as pure functions of labels and predictions.

Every metric takes a column of labels and one of predictions, (N,) each, both finite. It is NaN,
never a warning, where it is undefined: a correlation of fewer than two rows or of a side that is
constant, an r² of constant labels. Values equal those of scipy and scikit-learn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cedilla.metrics.columns import Floats, per_column


def regression_metrics(labels: ArrayLike, predictions: ArrayLike) -> dict[str, Floats]:
    """Pearson, Spearman, r², mean squared and mean absolute error of each column, (T,) each.

    Parameters
    ----------
    labels:
        (N, T), or (N,) for one column; rows whose label is NaN are left out of their column.
    predictions:
        Of the same shape, in the labels' units.
    """
    return per_column(_METRICS, labels, predictions)


def pearson(labels: Floats, predictions: Floats) -> float:
    """Pearson's correlation of two columns (N,)."""
    if _constant(labels) or _constant(predictions):
        return float("nan")
    y, p = labels - labels.mean(), predictions - predictions.mean()
    # Each side is brought to length 1 on its own: a product of the two could overflow.
    return float(np.clip((y / np.linalg.norm(y)) @ (p / np.linalg.norm(p)), -1.0, 1.0))


def spearman(labels: Floats, predictions: Floats) -> float:
    """Spearman's correlation of two columns (N,): Pearson's of their ranks, ties at their mean."""
    return pearson(rankdata(labels), rankdata(predictions))


def r2(labels: Floats, predictions: Floats) -> float:
    """The share of the labels' variance that the predictions explain; below 0 if they add to it."""
    if _constant(labels):
        return float("nan")
    total = np.square(labels - labels.mean()).sum()
    return float(1 - np.square(labels - predictions).sum() / total)


def mse(labels: Floats, predictions: Floats) -> float:
    """The mean squared error of two columns (N,), in squared units of the labels."""
    return float(np.square(labels - predictions).mean()) if len(labels) else float("nan")


def mae(labels: Floats, predictions: Floats) -> float:
    """The mean absolute error of two columns (N,), in units of the labels."""
    return float(np.abs(labels - predictions).mean()) if len(labels) else float("nan")


def _constant(values: Floats) -> bool:
    return len(values) < 2 or bool(values.min() == values.max())


_METRICS = {"pearson": pearson, "spearman": spearman, "r2": r2, "mse": mse, "mae": mae}
REGRESSION_METRICS = tuple(_METRICS)
