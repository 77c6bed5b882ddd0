"""Labels and predictions of several columns, pair by pair, without what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def pairs(labels: ArrayLike, predictions: ArrayLike) -> Iterator[tuple[Floats, Floats]]:
    """The rows of each of T columns that have a label, as (labels, predictions) in float64.

    Parameters
    ----------
    labels:
        (N, T), or (N,) for one column; NaN where a label is missing.
    predictions:
        Of the same shape.

    Raises
    ------
    ValueError
        Where the shapes differ, there is no row, a label is infinite or a prediction not finite.
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.shape != p.shape or y.ndim not in (1, 2) or len(y) == 0:
        raise ValueError(f"labels {y.shape} and predictions {p.shape}: both (N, T), N > 0")
    if not np.isfinite(p).all() or np.isinf(y).any():
        raise ValueError("predictions must be finite, and labels finite or NaN")
    return _present(y.reshape(len(y), -1), p.reshape(len(y), -1))


def _present(y: NDArray, p: NDArray) -> Iterator[tuple[Floats, Floats]]:
    for label, prediction in zip(y.T, p.T, strict=True):
        known = ~np.isnan(label)
        yield label[known].astype(np.float64), prediction[known].astype(np.float64)


def per_column(
    metrics: Mapping[str, Callable[[Floats, Floats], float]],
    labels: ArrayLike,
    predictions: ArrayLike,
) -> dict[str, Floats]:
    """Each metric of each column, (T,); shapes as in :func:`pairs`."""
    values: dict[str, list[float]] = {name: [] for name in metrics}
    for label, prediction in pairs(labels, predictions):
        for name, metric in metrics.items():
            values[name].append(metric(label, prediction))
    return {name: np.array(column) for name, column in values.items()}


def mean_of_defined(values: Floats) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
