"""Columns of labels and predictions go in pairs, without the missing labels."""

from __future__ import annotations

import math

import numpy as np

from cedilla.metrics.columns import mean_of_defined, pairs, per_column


def test_pairs_leave_out_missing_labels_of_their_column_only():
    labels = np.array([[1, np.nan], [3, 4]], dtype=np.float32)
    found = [(y.tolist(), p.tolist()) for y, p in pairs(labels, np.array([[5.0, 6], [7, 8]]))]
    assert found == [([1, 3], [5, 7]), ([4], [8])]


def test_every_metric_gets_every_column():
    found = per_column({"rows": lambda y, p: len(y)}, [[1, np.nan], [3, 4]], [[1, 2], [3, 4]])
    assert found["rows"].tolist() == [2, 1]


def test_the_mean_leaves_out_what_is_undefined():
    assert mean_of_defined(np.array([1.0, np.nan, 3.0])) == 2
    assert math.isnan(mean_of_defined(np.array([np.nan])))
