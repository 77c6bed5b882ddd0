"""Metrics of a class at every base, such as splice donors and acceptors.

Class 0 is the background (no site), which nearly every base is: metrics are of the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cedilla.metrics.classification import Ranking
from cedilla.metrics.columns import Floats

PER_BASE_METRICS = ("auprc", "top_k", "f1")


def per_base_metrics(
    labels: Sequence[NDArray], probabilities: Sequence[NDArray]
) -> dict[str, Floats]:
    """Average precision, top-k accuracy and F1 of each class but 0, (C - 1,) each.

    The bases of all sequences are scored together. A class that no base has is NaN, in F1 only if
    it is never called either; a base is called the class that is most probable.

    Parameters
    ----------
    labels:
        N arrays (L_i,) of classes 0 … C-1; -1 where a base has no label.
    probabilities:
        N arrays (L_i, C).

    Raises
    ------
    ValueError
        Where lengths differ, a label is no class, a value is not finite, or no base has a label.
    """
    y, p = _joined(labels, probabilities)
    classes = range(1, p.shape[1])
    called = p.argmax(axis=1)
    values = [(*_ranked(y == k, p[:, k]), _f1(y == k, called == k)) for k in classes]
    return dict(zip(PER_BASE_METRICS, np.array(values).reshape(-1, 3).T, strict=True))


def top_k(positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Of the k highest-scored positions, the share that are sites, k being the number of sites.

    `positive` (N,), `scores` (N,). Positions that tie for the last places count as a draw among
    them does on average, so that the order of the rows does not matter. NaN without sites.
    Source: Jaganathan et al., Cell 176 (2019) 535–548.
    """
    k = int(positive.sum())
    if k == 0:
        return float("nan")
    lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = scores > lowest, scores == lowest
    places = k - int(above.sum())
    drawn = places * positive[tied].mean()
    return float((positive[above].sum() + drawn) / k)


def _ranked(positive: NDArray[np.bool_], scores: NDArray) -> tuple[float, float]:
    return float(Ranking(positive, scores).areas()["auprc"][0]), top_k(positive, scores)


def _f1(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> float:
    hits, either = int((positive & called).sum()), int(positive.sum()) + int(called.sum())
    return 2 * hits / either if either else float("nan")


def _joined(labels: Sequence[NDArray], probabilities: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """Labels (M,) and probabilities (M, C) of the bases that have a label, of all sequences."""
    if [len(row) for row in labels] != [len(row) for row in probabilities]:
        raise ValueError("every sequence needs as many predictions as labels, one a base")
    if not any((row >= 0).any() for row in labels):
        raise ValueError("no base has a label")
    y = np.concatenate([row[row >= 0] for row in labels])
    p = np.concatenate([p[row >= 0] for row, p in zip(labels, probabilities, strict=True)])
    if y.max() >= p.shape[1] or not np.isfinite(p).all():
        raise ValueError(f"labels must be -1 … {p.shape[1] - 1}, and probabilities finite")
    return y, p
