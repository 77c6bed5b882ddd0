"""Metrics of a class a base equal scikit-learn's over all bases; top-k is that of its paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cedilla.metrics.per_base import PER_BASE_METRICS, per_base_metrics, top_k


def sequences(seed, count, steps):
    """`count` sequences of unequal length: classes 0-2 with missing ones, probabilities."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, count)
    labels = [rng.integers(-1, 3, n).astype(np.int8) for n in lengths]
    labels[0][:3] = [0, 1, 2]
    p = [rng.integers(0, steps + 1, (n, 3)) / steps for n in lengths]
    return labels, p


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([2, 1000]))
def test_metrics_equal_scikit_learn(seed, count, steps):
    labels, p = sequences(seed, count, steps)
    ours = per_base_metrics(labels, p)
    assert tuple(ours) == PER_BASE_METRICS
    y, scores = np.concatenate(labels), np.concatenate(p)
    y, scores = y[y >= 0], scores[y >= 0]
    f1 = reference.f1_score(y, scores.argmax(1), labels=[1, 2], average=None)
    areas = [reference.average_precision_score(y == k, scores[:, k]) for k in (1, 2)]
    np.testing.assert_allclose(ours["f1"], f1)
    np.testing.assert_allclose(ours["auprc"], areas)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from([2, 4, 1000]))
def test_top_k_is_the_mean_over_all_orders_of_tied_rows(seed, rows, steps):
    rng = np.random.default_rng(seed)
    positive, scores = rng.random(rows) < 0.5, rng.integers(0, steps + 1, rows) / steps
    positive[0] = True
    k = positive.sum()
    shares = [
        positive[sorted(order, key=lambda i: -scores[i])[:k]].mean()
        for order in map(list, itertools.permutations(range(rows)))
    ]
    assert top_k(positive, scores) == pytest.approx(np.mean(shares))


def test_top_k_counts_sites_among_as_many_positions():
    positive = np.array([True, False, True, False, False])
    assert top_k(positive, np.array([0.9, 0.8, 0.7, 0.1, 0.0])) == 0.5
    assert top_k(positive, np.array([0.9, 0.1, 0.7, 0.1, 0.0])) == 1


def test_a_class_that_is_absent_is_nan_and_the_background_is_not_scored():
    labels = [np.array([0, 1, 0, -1])]
    p = [np.array([[0.8, 0.2, 0.0, 0.0], [0.1, 0.9, 0, 0], [0.3, 0.1, 0.6, 0], [0, 0, 0, 1.0]])]
    ours = {name: values.tolist() for name, values in per_base_metrics(labels, p).items()}
    assert ours["f1"] == pytest.approx([1, 0, np.nan], nan_ok=True)  # class 2 is called, once
    assert ours["auprc"] == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    assert ours["top_k"] == pytest.approx([1, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "p", "what"),
    [
        ([[0, 1]], [np.ones((3, 2))], "one a base"),
        ([[-1, -1]], [np.ones((2, 2))], "no base has a label"),
        ([[0, 2]], [np.ones((2, 2))], "labels must be -1 … 1"),
        ([[0, 1]], [np.full((2, 2), np.nan)], "finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, p, what):
    with pytest.raises(ValueError, match=what):
        per_base_metrics([np.array(row) for row in labels], p)
