"""Logistic regression on k-mer counts: the baseline that takes seconds."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cedilla.metrics.classification import mcc
from cedilla.models.kmers import count_kmers
from cedilla.training.splits import Splits, labels_of

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


def predict_with_kmers(
    splits: Splits, scored: Splits, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Probabilities (N, C) of every split of `scored` by a regression fitted to `splits`, and what
    a run says of the method."""
    pairs = {split: (t.sequences, labels_of(t)) for split, t in splits}
    pipeline, k = fit_kmers(pairs["train"], pairs["dev"], seed=seed)
    # A class that the drawn training rows lack has the probability 0.
    probabilities = {
        split: np.zeros((len(table), splits.target.outputs)) for split, table in scored
    }
    for split, table in scored:
        found = pipeline.predict_proba(features(table.sequences, k))
        probabilities[split][:, pipeline.classes_] = found
    size = pipeline[-1].coef_.size + pipeline[-1].intercept_.size
    return probabilities, {
        "method": f"logistic regression on {k}-mers",
        "trainable": size,
        "parameters": size,
        "best_epoch": None,
        "epochs": None,
    }
