"""Temperature scaling: it finds the temperature that was put in, and says what it brought."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss

from cedilla.training.calibration import (
    LOWEST,
    Calibration,
    calibrate,
    fit_temperature,
    quality,
)
from cedilla.training.targets import Target


def drawn(n: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, C) that are `temperature` times too large for the labels (n,) drawn by them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (n, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return logits * temperature, labels


def target(kind: str, names: tuple[str, ...]) -> Target:
    return Target(kind=kind, columns=("label",), names=names)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(classes, temperature):
    logits, labels = drawn(4000, classes, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)


def test_overconfident_classes_are_calibrated():
    logits, labels = drawn(3000, 3, 3.0)
    found = calibrate(target("classes", ("0", "1", "2")), torch.tensor(logits), labels)
    assert found.rows == 3000
    assert found.before["ece"] > 0.1
    assert found.after["ece"] < 0.03
    for name, before in found.before.items():
        assert found.after[name] < before
    scaled = found(torch.tensor(logits))
    assert torch.equal(scaled.argmax(1), torch.tensor(logits).argmax(1))
    torch.testing.assert_close(scaled * found.temperature, torch.tensor(logits))


def test_cells_of_several_columns_share_a_temperature_and_may_be_missing():
    logits, labels = drawn(3000, 2, 2.5)
    differences = torch.tensor(logits[:, 1] - logits[:, 0]).reshape(1500, 2)
    cells = labels.reshape(1500, 2).astype(np.float32)
    cells[:100, 0] = np.nan
    found = calibrate(target("multilabel", ("a", "b")), differences, cells)
    assert found.rows == 2900
    assert found.temperature == pytest.approx(2.5, rel=0.15)


def test_bases_without_a_label_are_left_out():
    logits, labels = drawn(3000, 3, 2.0)
    rows = [torch.tensor(part) for part in np.split(logits, 10)]
    classes = [part.astype(np.int8) for part in np.split(labels, 10)]
    wrong = torch.full((50, 3), 9.0).double()
    found = calibrate(
        target("per_base", ("0", "1", "2")), [*rows, wrong], [*classes, np.full(50, -1, np.int8)]
    )
    assert found.rows == 3000
    assert found.temperature == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("kind", ["regression", "fraction"])
def test_numbers_stay_as_they_are(kind):
    found = calibrate(target(kind, ("y",)), torch.zeros(3, 1), np.zeros((3, 1)))
    assert found == Calibration()
    logits = torch.randn(3, 1)
    assert torch.equal(found(logits), logits)


def test_few_rows_that_are_all_right_show_no_certainty():
    """The unsmoothed loss falls for ever as the temperature does."""
    labels = np.arange(10) % 2
    logits = np.stack([1.0 - labels, labels], axis=1)
    found = fit_temperature(logits, labels)
    assert found > 2 * LOWEST
    # Five rows of a class: 6 / 7 is the most that they can show.
    assert softmax(logits / found, axis=1)[0, 0] == pytest.approx(6 / 7, abs=0.001)


def test_scores_are_those_of_scikit_learn():
    logits, labels = drawn(500, 2, 1.0)
    p = softmax(logits, axis=1)[:, 1]
    found = quality(log_softmax(logits, axis=1), labels)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, p))
    assert found["log_loss"] == pytest.approx(log_loss(labels, p))


def test_ece_is_the_gap_between_confidence_and_accuracy():
    p = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Four rows at .9 of which three are right, two at .6 that are both right.
    wanted = (4 * abs(0.9 - 0.75) + 2 * abs(0.6 - 1)) / 6
    assert quality(np.log(p), labels)["ece"] == pytest.approx(wanted)
