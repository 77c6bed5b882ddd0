"""Metrics of several yes-or-no labels a row, such as the 919 chromatin profiles of DeepSEA."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cedilla.metrics.classification import Ranking
from cedilla.metrics.columns import Floats, pairs
from cedilla.metrics.regression import mse

MULTILABEL_METRICS = ("auroc", "auprc", "brier")


def multilabel_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Floats]:
    """AUROC, average precision and Brier score of each column, (T,) each.

    The two areas are NaN in a column whose labels do not hold both 0 and 1; the Brier score, the
    mean squared error of the probability, is NaN in one without labels only.

    Parameters
    ----------
    labels:
        (N, T) of 0 and 1; rows whose label is NaN are left out of their column.
    probabilities:
        (N, T), of 1, in [0, 1].

    Raises
    ------
    ValueError
        Where the shapes differ, a label is neither 0 nor 1, or a probability is outside [0, 1].
    """
    columns = []
    for y, p in pairs(labels, probabilities):
        if not np.isin(y, (0, 1)).all() or not np.all((p >= 0) & (p <= 1)):
            raise ValueError("labels must be 0, 1 or NaN, and probabilities lie in [0, 1]; logits?")
        columns.append((*_areas(y, p), mse(y, p)))
    return dict(zip(MULTILABEL_METRICS, np.array(columns).reshape(-1, 3).T, strict=True))


def _areas(y: Floats, p: Floats) -> tuple[float, float]:
    if not len(y):
        return float("nan"), float("nan")
    areas = Ranking(y, p).areas()
    return float(areas["auroc"][0]), float(areas["auprc"][0])
