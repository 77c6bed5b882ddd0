"""The metrics equal scikit-learn's, weights are repeated rows, thresholds are the best ones."""

from __future__ import annotations

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cedilla.metrics.classification import (
    METRICS,
    Scorer,
    auprc,
    auroc,
    best_threshold,
    classification_metrics,
    mcc,
)


@st.composite
def binary(draw, min_rows=2):
    """Labels of two classes, coarse probabilities (many ties), and row counts."""
    rows = draw(st.integers(min_rows, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    labels[0], labels[1] = 0, 1
    steps = draw(st.sampled_from([3, 10, 1000]))
    scores = draw(st.lists(st.integers(0, steps), min_size=rows, max_size=rows))
    counts = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    counts[0], counts[1] = max(counts[0], 1), max(counts[1], 1)
    return np.array(labels), np.array(scores) / steps, np.array(counts)


def scikit_learn(labels, p, called, average="binary"):
    scores = {
        name: getattr(reference, f"{name}_score")(
            labels, called, average=average, zero_division=0.0
        )
        for name in ("f1", "precision", "recall")
    }
    return scores | {
        "accuracy": reference.accuracy_score(labels, called),
        "mcc": reference.matthews_corrcoef(labels, called),
    }


@settings(max_examples=40, deadline=None)
@given(binary(), st.sampled_from([0.2, 0.5, 1.0]))
def test_binary_metrics_equal_scikit_learn(case, threshold):
    labels, p, _ = case
    ours = classification_metrics(labels, p, threshold=threshold)
    theirs = scikit_learn(labels, p, (p >= threshold).astype(int)) | {
        "auroc": reference.roc_auc_score(labels, p),
        "auprc": reference.average_precision_score(labels, p),
        "n": len(labels),
        "prevalence": labels.mean(),
    }
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=40, deadline=None)
@given(binary())
def test_weights_are_repeated_rows(case):
    labels, p, counts = case
    scored = Scorer(labels, p)(np.stack([counts, np.ones_like(counts)]))
    repeated = classification_metrics(np.repeat(labels, counts), np.repeat(p, counts))
    plain = classification_metrics(labels, p)
    for name in METRICS:
        assert scored[name] == pytest.approx([repeated[name], plain[name]], abs=1e-12), name


@settings(max_examples=40, deadline=None)
@given(binary())
def test_single_functions_take_weights_as_scikit_learn_does(case):
    labels, p, counts = case
    called = (p >= 0.5).astype(int)
    weights = counts[None]
    assert auroc(labels, p, weights)[0] == pytest.approx(
        reference.roc_auc_score(labels, p, sample_weight=counts)
    )
    assert auprc(labels, p, weights)[0] == pytest.approx(
        reference.average_precision_score(labels, p, sample_weight=counts)
    )
    assert mcc(labels, called, weights)[0] == pytest.approx(
        reference.matthews_corrcoef(labels, called, sample_weight=counts), abs=1e-12
    )
    assert auroc(labels, p) == pytest.approx(reference.roc_auc_score(labels, p))
    assert auprc(labels, p) == pytest.approx(reference.average_precision_score(labels, p))
    assert mcc(labels, called) == pytest.approx(reference.matthews_corrcoef(labels, called))


@pytest.mark.parametrize("classes", [3, 9])
@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_equal_scikit_learn(classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(classes), rng.integers(0, classes, 60))
    p = rng.dirichlet(np.ones(classes), len(labels)).round(2)
    p /= p.sum(axis=1, keepdims=True)
    ours = classification_metrics(labels, p)
    one_hot = labels[:, None] == np.arange(classes)
    theirs = scikit_learn(labels, p, p.argmax(axis=1), average="macro") | {
        "auroc": reference.roc_auc_score(labels, p, multi_class="ovr", average="macro"),
        "auprc": reference.average_precision_score(one_hot, p, average="macro"),
        "prevalence": 1 / classes,
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_many_classes_take_memory_as_their_probabilities_do():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 200, 10_000), rng.random((10_000, 200))
    p[np.arange(0, 10_000, 2), labels[::2]] = 1.0
    weights = rng.integers(0, 3, (10, 10_000))
    tracemalloc.start()
    scored = Scorer(labels, p, metrics=("f1", "mcc"))(weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * p.nbytes
    for draw, w in enumerate(weights):
        arrays, options = (labels, p.argmax(axis=1)), {"sample_weight": w}
        theirs = reference.f1_score(*arrays, average="macro", **options)
        assert scored["f1"][draw] == pytest.approx(theirs, abs=1e-12)
        theirs = reference.matthews_corrcoef(*arrays, **options)
        assert scored["mcc"][draw] == pytest.approx(theirs, abs=1e-12)


def test_a_class_without_rows_is_left_out_of_the_areas():
    labels = np.array([0, 1, 0, 1])
    p = np.array([[0.7, 0.1, 0.2], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
    scores = classification_metrics(labels, p)
    assert scores["auroc"] == 1.0
    assert scores["prevalence"] == 0.5
    # The absent class was called once, so it counts in the means of the others, with 0.
    assert scores["recall"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_two_columns_are_the_binary_case():
    labels, p = np.array([0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.6])
    columns = np.stack([1 - p, p], axis=1)
    assert classification_metrics(labels, columns) == classification_metrics(labels, p)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_areas_and_no_warning(label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_metrics(np.full(5, label), np.linspace(0.1, 0.9, 5))
    assert math.isnan(scores["auroc"])
    assert math.isnan(scores["auprc"])
    assert scores["mcc"] == 0
    assert scores["prevalence"] == label
    assert math.isnan(classification_metrics([2, 2], [[0.1, 0.2, 0.7]] * 2)["auroc"])


@pytest.mark.parametrize("rows", [7, 100, 99_991])
def test_a_perfect_score_is_exactly_one(rows):
    labels = np.arange(rows) % 3 % 2
    scores = classification_metrics(labels, labels.astype(float))
    assert all(scores[name] == 1.0 for name in METRICS)


def test_a_draw_without_one_class_is_nan_only_there():
    weights = np.array([[1, 1, 1], [0, 1, 2], [0, 0, 0]])
    values = auroc([0, 1, 1], [0.1, 0.5, 0.2], weights)
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()


@settings(max_examples=40, deadline=None)
@given(binary())
def test_best_threshold_has_the_highest_mcc(case):
    labels, p, _ = case
    cut = best_threshold(labels, p)
    assert 0 <= cut <= 1
    reached = mcc(labels, (p >= cut).astype(int))
    for other in np.append(np.unique(p), 0.0):
        assert reached >= mcc(labels, (p >= other).astype(int)) - 1e-12


def test_best_threshold_is_the_middle_of_the_best_interval():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


def test_best_threshold_takes_the_widest_then_the_lowest_of_equals():
    # One negative above one positive: cutting below or above the pair costs one error.
    labels = [0, 1, 0, 1]
    assert best_threshold(labels, [0.1, 0.4, 0.5, 0.9]) == pytest.approx(0.7)
    assert best_threshold(labels, [0.1, 0.5, 0.6, 0.9]) == pytest.approx(0.3)
    assert best_threshold(labels, [0.25, 0.5, 0.625, 0.875]) == 0.375


def test_best_threshold_separates_neighbouring_floats():
    low = 0.3
    high = float(np.nextafter(low, 1))
    assert best_threshold([0, 1], [low, high]) == high
    assert best_threshold([0, 1], [0.0, 5e-324]) == 5e-324


def test_best_threshold_without_a_choice():
    assert best_threshold([1, 1, 1], [0.01, 0.02, 0.9]) == 0.5
    assert best_threshold([0, 1], [0.0, 0.0]) == 0.5
    with pytest.raises(ValueError, match="two classes"):
        best_threshold([0, 1, 2], np.eye(3))


def test_single_precision_probabilities_keep_their_side_of_the_threshold():
    p = np.array([0.1, 0.1], dtype=np.float32)
    assert classification_metrics([0, 1], p, threshold=0.1)["recall"] == 1.0
    assert classification_metrics([0, 1], p, threshold=float(p[0]))["recall"] == 1.0
    assert classification_metrics([0, 1], p, threshold=0.1000001)["recall"] == 0.0


@pytest.mark.parametrize(
    ("labels", "p", "message"),
    [
        ([0, 1], [0.1], "shape|labels"),
        ([], [], "N > 0"),
        ([0, 1], [0.1, float("nan")], "NaN"),
        ([0, 1], [-2.0, 1.3], "logits"),
        ([0, 2], [0.1, 0.2], "class numbers 0 … 1"),
        ([0, 0.5], [0.1, 0.2], "class numbers"),
        ([0, -1], [0.1, 0.2], "class numbers"),
        ([0, 1], [[0.1], [0.2]], "column per class"),
    ],
)
def test_arrays_that_cannot_be_scored(labels, p, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, p)


def test_unknown_metrics_and_fractional_weights_are_refused():
    with pytest.raises(ValueError, match="'auc'"):
        Scorer([0, 1], [0.1, 0.2], metrics=("auc",))
    with pytest.raises(ValueError, match="integers"):
        auroc([0, 1], [0.1, 0.2], np.array([[0.5, 1.0]]))
    with pytest.raises(ValueError, match=r"\(D, 2\)"):
        mcc([0, 1], [0, 1], np.array([1, 2, 3]))
