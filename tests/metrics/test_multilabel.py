"""Metrics of yes-or-no columns equal scikit-learn's, without the missing labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cedilla.metrics.multilabel import MULTILABEL_METRICS, multilabel_metrics


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 60), st.sampled_from([2, 10, 1000]))
def test_metrics_equal_scikit_learn(seed, rows, steps):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (rows, 4)).astype(np.float32)
    labels[2:][rng.random((rows - 2, 4)) < 0.3] = np.nan
    labels[:2] = [[0] * 4, [1] * 4]
    p = rng.integers(0, steps + 1, (rows, 4)) / steps
    ours = multilabel_metrics(labels, p)
    assert tuple(ours) == MULTILABEL_METRICS
    for k in range(4):
        known = ~np.isnan(labels[:, k])
        y, scores = labels[known, k], p[known, k]
        theirs = {
            "auroc": reference.roc_auc_score(y, scores),
            "auprc": reference.average_precision_score(y, scores),
            "brier": reference.brier_score_loss(y, scores),
        }
        assert {name: values[k] for name, values in ours.items()} == pytest.approx(theirs)


def test_columns_of_one_value_have_no_area():
    nan = np.nan
    labels = np.array([[0, 1, nan, 0], [0, nan, nan, 1]])
    ours = multilabel_metrics(labels, np.full((2, 4), 0.5))
    assert np.isnan(ours["auroc"]).tolist() == [True, True, True, False]
    assert np.isnan(ours["auprc"]).tolist() == [True, True, True, False]
    np.testing.assert_allclose(ours["brier"], [0.25, 0.25, nan, 0.25])


@pytest.mark.parametrize("labels, p", [([[0], [2]], [[0.1], [0.2]]), ([[0], [1]], [[0.1], [1.2]])])  # noqa: PT006
def test_labels_that_are_no_yes_or_no_and_logits_are_refused(labels, p):
    with pytest.raises(ValueError, match="0, 1 or NaN"):
        multilabel_metrics(labels, p)
