"""Logistic regression on k-mer counts: the baseline that takes seconds."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cedilla.metrics.classification import mcc
from cedilla.models.kmers import count_kmers

GRID = [(k, c) for k in (4, 5, 6) for c in (1e-4, 1e-3, 1e-2)]


def features(sequences: list[str], k: int) -> np.ndarray:
    """Square roots of canonical k-mer counts (N, C), which tame repeats."""
    counts: np.ndarray = np.sqrt(count_kmers(sequences, k))
    return counts


def fit_kmers(
    train: tuple[list[str], np.ndarray], dev: tuple[list[str], np.ndarray], *, seed: int
) -> tuple[Pipeline, int]:
    """The pipeline and the k with the highest MCC on dev, out of `GRID`."""
    best: tuple[float, Pipeline | None, int] = (-2.0, None, 0)
    for k, cells in groupby(GRID, key=lambda cell: cell[0]):
        # Counting takes long, so it is done once for all strengths of a k.
        of_train, of_dev = features(train[0], k), features(dev[0], k)
        for _, c in cells:
            pipeline = make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=1000, random_state=seed)
            )
            pipeline.fit(of_train, train[1])
            score = mcc(dev[1], pipeline.predict(of_dev))
            if score > best[0]:
                best = (score, pipeline, k)
    assert best[1] is not None
    return best[1], best[2]
