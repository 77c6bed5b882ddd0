"""Metrics of numbers equal scipy's and scikit-learn's; what is undefined is NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from cedilla.metrics.regression import REGRESSION_METRICS, regression_metrics


@st.composite
def columns(draw):
    """Labels and predictions (N, 3) with many ties, some labels missing, none constant."""
    rows = draw(st.integers(6, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([2, 10, 10_000]))
    labels, predictions = rng.integers(0, steps + 1, (2, rows, 3)) / steps * 1e3 - 7
    labels[2:][rng.random((rows - 2, 3)) < 0.3] = np.nan
    labels[:2], predictions[:2] = [[0.0] * 3, [1.0] * 3], [[0.0] * 3, [2.0] * 3]
    return labels, predictions


@settings(max_examples=25, deadline=None)
@given(columns())
def test_metrics_equal_scipy_and_scikit_learn(case):
    labels, predictions = case
    ours = regression_metrics(labels, predictions)
    assert tuple(ours) == REGRESSION_METRICS
    for k in range(3):
        known = ~np.isnan(labels[:, k])
        y, p = labels[known, k], predictions[known, k]
        theirs = {
            "pearson": stats.pearsonr(y, p).statistic,
            "spearman": stats.spearmanr(y, p).statistic,
            "r2": reference.r2_score(y, p),
            "mse": reference.mean_squared_error(y, p),
            "mae": reference.mean_absolute_error(y, p),
        }
        assert {name: values[k] for name, values in ours.items()} == pytest.approx(theirs, abs=1e-9)


def test_one_column_may_be_flat():
    ours = regression_metrics([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    best = {"pearson": 1.0, "spearman": 1.0, "r2": 1.0, "mse": 0.0, "mae": 0.0}
    assert {name: value for name, (value,) in ours.items()} == pytest.approx(best)


@pytest.mark.parametrize(
    ("labels", "predictions", "undefined"),
    [
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], {"pearson", "spearman"}),
        ([2.0, 2.0, 2.0], [0.1, 0.2, 0.3], {"pearson", "spearman", "r2"}),
        ([2.0, np.nan, np.nan], [0.1, 0.2, 0.3], {"pearson", "spearman", "r2"}),
        ([np.nan, np.nan], [0.1, 0.2], set(REGRESSION_METRICS)),
    ],
)
def test_what_is_undefined_is_nan_without_a_warning(labels, predictions, undefined):
    ours = regression_metrics(labels, predictions)
    assert {name for name, (value,) in ours.items() if math.isnan(value)} == undefined


def test_the_largest_and_smallest_float32_do_not_overflow():
    y = np.array([1, 2, 4], dtype=np.float32)
    scores = regression_metrics(y * np.float32(5e37), -y * np.float32(1e-38))
    assert scores["pearson"][0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.inf], [1.0, 2.0]),
        ([1.0, 2.0], [[1.0], [2.0]]),
        ([], []),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, predictions):
    with pytest.raises(ValueError, match="predictions"):
        regression_metrics(labels, predictions)
