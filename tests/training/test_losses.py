"""Losses are PyTorch's or their paper's, row by row, and blind to missing labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from cedilla.errors import InputError
from cedilla.training.losses import (
    Loss,
    balanced_classes,
    balanced_columns,
    binary_cross_entropy,
    binary_focal,
    cross_entropy,
    focal,
    huber,
    squared_error,
)
from cedilla.training.targets import Target

NAN = float("nan")
NUMBERS = Target(
    kind="regression", columns=("a", "b"), names=("a", "b"), center=(10.0, 0.0), spread=(2.0, 1.0)
)
KINDS = {
    "classes": Target(kind="classes", columns=("y",), names=("0", "1", "2")),
    "multilabel": Target(kind="multilabel", columns=("a", "b"), names=("a", "b")),
    "regression": NUMBERS,
    "fraction": Target(kind="fraction", columns=("a", "b"), names=("a", "b")),
    "per_base": Target(kind="per_base", columns=("y",), names=("0", "1", "2")),
}
TRAIN = {
    "classes": np.array([0, 0, 1, 2]),
    "multilabel": np.array([[0, 1], [1, 1], [0, NAN], [0, 0]], dtype=np.float32),
    "regression": np.array([[8, 0], [12, 1]], dtype=np.float32),
    "fraction": np.array([[0.2, 0.0], [0.7, 1.0]], dtype=np.float32),
    "per_base": [np.array([0, 0, 0, 1, -1]), np.array([2, 0])],
}


@pytest.fixture
def logits():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3


def test_cross_entropy_is_that_of_pytorch(logits):
    labels, weights = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([1.0, 2.0, 5.0])
    ours = cross_entropy(logits, labels, smoothing=0.1, weights=weights)
    theirs = [
        F.cross_entropy(row[None], y[None], weight=weights, label_smoothing=0.1, reduction="sum")
        for row, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(theirs))


def test_a_row_of_bases_has_the_mean_of_its_labelled_ones(logits):
    logits = torch.stack([logits, -logits, 2 * logits])  # (B, L, C)
    labels = torch.tensor([[0, 1, 2, -1, -1], [2, 0, 0, 1, 1], [-1] * 5])
    weights = torch.tensor([0.5, 3.0, 4.0])
    plain = F.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=-1, reduction="none", weight=weights
    )
    ours = cross_entropy(logits, labels, weights=weights)
    torch.testing.assert_close(ours, plain.sum(1) / torch.tensor([3, 5, 1]))
    assert ours[2] == 0


def test_focal_loss_is_its_formula(logits):
    labels, weights = torch.tensor([0, 1, 2, 2, -1]), torch.tensor([1.0, 2.0, 5.0])
    p = torch.softmax(logits, -1)[range(5), labels]
    expected = -weights[labels] * (1 - p) ** 2 * p.log()
    expected[4] = 0
    torch.testing.assert_close(focal(logits, labels, gamma=2, weights=weights), expected)
    torch.testing.assert_close(focal(logits, labels, gamma=0), cross_entropy(logits, labels))


def test_binary_focal_loss_is_its_formula(logits):
    y = torch.tensor([[0.0, 1, NAN], [1, 1, 0], [NAN] * 3, [0, 0, 0], [1, NAN, NAN]])
    weights = torch.tensor([1.0, 2.0, 5.0])
    p = torch.sigmoid(logits)
    cells = torch.where(
        y == 1, -weights * (1 - p) ** 1.5 * p.log(), -(p**1.5) * (1 - p).log()
    ).masked_fill(y.isnan(), 0)
    expected = cells.sum(1) / torch.tensor([2, 3, 1, 3, 1])
    ours = binary_focal(logits, y, gamma=1.5, positive_weights=weights)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_binary_cross_entropy_is_that_of_pytorch_where_a_label_is_known(logits):
    y = torch.tensor([[0.0, 1, NAN], [0.3, 1, 0], [NAN] * 3, [0, 0, 0.9], [1, NAN, NAN]])
    weights = torch.tensor([1.0, 2.0, 5.0])
    ours = binary_cross_entropy(logits, y, smoothing=0.2, positive_weights=weights)
    for row, label, loss in zip(logits, y, ours, strict=True):
        known = ~label.isnan()
        theirs = F.binary_cross_entropy_with_logits(
            row[known], label[known] * 0.8 + 0.1, pos_weight=weights[known]
        )
        assert loss.item() == pytest.approx(theirs.item() if known.any() else 0.0)


def test_errors_of_numbers():
    p, y = (
        torch.tensor([[1.0, 5.0], [0, 0], [2, 2]]),
        torch.tensor([[0.5, 1.0], [NAN, 3], [NAN] * 2]),
    )
    torch.testing.assert_close(squared_error(p, y), torch.tensor([(0.25 + 16) / 2, 9, 0]))
    torch.testing.assert_close(huber(p, y), torch.tensor([(0.125 + 3.5) / 2, 2.5, 0]))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "bce", "binary_focal", "mse", "huber"])
def test_gradients_are_finite_at_missing_labels_and_sure_logits(loss):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]], requires_grad=True)
    classes, yes = torch.tensor([0, 0, -1]), torch.tensor([[1.0, 1.0], [NAN, 0.0], [NAN, NAN]])
    found = {
        "cross_entropy": lambda: cross_entropy(logits, classes),
        "focal": lambda: focal(logits, classes, gamma=0.5),
        "bce": lambda: binary_cross_entropy(logits, yes),
        "binary_focal": lambda: binary_focal(logits, yes, gamma=0.5),
        "mse": lambda: squared_error(logits, yes),
        "huber": lambda: huber(logits, yes),
    }[loss]()
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[2].tolist() == [0, 0]
    assert logits.grad[1].abs().sum() > 0


def test_half_precision_logits_give_float32_losses(logits):
    assert cross_entropy(logits.bfloat16(), torch.zeros(5, dtype=torch.int8)).dtype == torch.float32


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.array([0, 0, 0, 0, 2, 2, 1, -1])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels[labels >= 0])
    np.testing.assert_allclose(balanced_classes(labels, 3), theirs, rtol=1e-6)
    assert balanced_classes(np.array([0, 0, 2]), 3).tolist() == [0.75, 1.0, 1.5]
    columns = np.array([[0, 1, 0], [0, 1, NAN], [1, 0, 0], [0, NAN, 0]])
    assert balanced_columns(columns).tolist() == [3.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("kind", "shape", "labels"),
    [
        ("classes", (2, 3), [0, 2]),
        ("multilabel", (2, 2), [[0.0, NAN], [1, 1]]),
        ("regression", (2, 2), [[12.0, NAN], [8, 1]]),
        ("fraction", (2, 2), [[0.25, NAN], [1, 0]]),
        ("per_base", (2, 4, 3), [[0, 1, 2, -1], [0, 0, -1, -1]]),
    ],
)
def test_automatic_losses(kind, shape, labels):
    logits, labels = torch.zeros(shape), torch.tensor(labels)
    ours = Loss().of(KINDS[kind], TRAIN[kind])(logits, labels)
    expected = {
        "classes": [math.log(3)] * 2,
        "multilabel": [math.log(2)] * 2,
        "regression": [1.0, 1.0],  # (12 - 10) / 2; (8 - 10) / 2 and 1
        "fraction": [math.log(2)] * 2,
        "per_base": [math.log(3)] * 2,
    }
    torch.testing.assert_close(ours, torch.tensor(expected[kind]))


def test_named_losses_reach_their_formulas():
    logits = torch.tensor([[2.0, 0.0]])
    y = torch.tensor([[1.0, 0.0]])
    fraction = Loss(kind="mse").of(KINDS["fraction"], TRAIN["fraction"])
    torch.testing.assert_close(fraction(logits, y), squared_error(logits.sigmoid(), y))
    number = Loss(kind="huber").of(NUMBERS, TRAIN["regression"])
    torch.testing.assert_close(number(logits, y), huber(logits, torch.tensor([[-4.5, 0.0]])))
    yes = Loss(kind="focal", gamma=3).of(KINDS["multilabel"], TRAIN["multilabel"])
    torch.testing.assert_close(yes(logits, y), binary_focal(logits, y, gamma=3))
    logits, y = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([1])
    one = Loss(kind="focal", gamma=1).of(KINDS["classes"], TRAIN["classes"])
    torch.testing.assert_close(one(logits, y), focal(logits, y, gamma=1))
    smooth = Loss(smoothing=0.1).of(KINDS["classes"], TRAIN["classes"])
    torch.testing.assert_close(smooth(logits, y), cross_entropy(logits, y, smoothing=0.1))


def test_weights_come_from_the_training_labels():
    logits = torch.zeros(1, 3)
    loss = Loss(class_weights="balanced").of(KINDS["classes"], TRAIN["classes"])
    assert loss(logits, torch.tensor([1])).item() == pytest.approx(4 / 3 * math.log(3))
    loss = Loss(class_weights="balanced").of(KINDS["per_base"], TRAIN["per_base"])
    assert loss(logits[None], torch.tensor([[1]])).item() == pytest.approx(2 * math.log(3))
    loss = Loss(class_weights="balanced").of(KINDS["multilabel"], TRAIN["multilabel"])
    yes, no = (loss(logits[:, :2], torch.tensor([[y, NAN]])).item() for y in (1.0, 0.0))
    assert [yes, no] == pytest.approx([3 * math.log(2), math.log(2)])
    loss = Loss(class_weights=(1.0, 5.0, 1.0)).of(KINDS["classes"], TRAIN["classes"])
    assert loss(logits, torch.tensor([1])).item() == pytest.approx(5 * math.log(3))


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [
        ("classes", {"kind": "mse"}, "mse is no loss of classes; take cross_entropy or focal"),
        ("fraction", {"kind": "huber"}, "huber is no loss of fraction; take bce or mse"),
        ("classes", {"smoothing": 1.0}, "label smoothing 1.0; from 0 to below 1"),
        ("regression", {"smoothing": 0.1}, "mse of regression smoothes no labels"),
        ("fraction", {"smoothing": 0.1}, "bce of fraction smoothes no labels"),
        ("per_base", {"kind": "focal", "smoothing": 0.1}, "focal of per_base smoothes no labels"),
        ("classes", {"kind": "focal", "gamma": -1.0}, "gamma -1.0; 0 at least"),
        ("regression", {"class_weights": "balanced"}, "regression has no classes to weigh"),
        ("classes", {"class_weights": (1.0, 2.0)}, "2 class weights for 3 outputs"),
        (
            "classes",
            {"class_weights": (1.0, -2.0, NAN)},
            "class weights (1.0, -2.0, nan); numbers above 0",
        ),
    ],
)
def test_pairs_that_make_no_sense_are_refused(kind, settings, what):
    with pytest.raises(InputError) as caught:
        Loss(**settings).of(KINDS[kind], TRAIN[kind])
    assert [str(problem) for problem in caught.value.problems] == [f"the loss: {what}"]
