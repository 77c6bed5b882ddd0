"""The loop: schedule, predictions on both strands, and which epoch counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.run_directory import Run
from cedilla.training.batches import SequenceData
from cedilla.training.loop import Finetuner, Schedule, default_epochs
from cedilla.training.precision import Precision

CPU = torch.device("cpu")
SEQUENCES = ["ACGTTGCA" * n for n in range(1, 11)]
LABELS = np.arange(10) % 2
NAN = float("nan")


def trainer(features: int = 0, **changes) -> Finetuner:
    torch.manual_seed(0)
    encoder = DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1))
    plan = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "patience": 0, "select": "mcc"}
    schedule = Schedule(**plan | {"seed": 0} | changes)
    return Finetuner(SequenceClassifier(encoder, 2, features=features), schedule, CPU)


def data(of: Finetuner, sequences=SEQUENCES, features=None) -> SequenceData:
    tokenizer = Tokenizer.for_model(of.model.encoder)
    return SequenceData(sequences, LABELS[: len(sequences)], tokenizer, features=features)


def test_the_rate_rises_and_falls_to_a_hundredth():
    t = trainer(learning_rate=1.0)
    batch = data(t).batch(np.arange(4), np.zeros(4, dtype=int))
    rates = []
    for progress in (0.0, 0.05, 0.1, 0.55, 0.999):
        t._step(batch, progress)
        rates += {group["lr"] for group in t.optimiser.param_groups}
    assert rates == pytest.approx([0.01, 0.51, 1.0, 0.505, 0.01], abs=2e-3)


def test_vectors_are_not_decayed():
    t = trainer()
    decayed, others = t.optimiser.param_groups
    assert decayed["weight_decay"] == 0.01
    assert others["weight_decay"] == 0
    assert {p.ndim for p in others["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) == 2


def test_both_strands_are_averaged_in_the_rows_order():
    t = trainer()
    rows = data(t)
    both = t.logits(rows, "")
    alone = trainer(strands=False)
    forward = alone.logits(rows, "")
    other = SequenceData(
        [s[::-1].translate(str.maketrans("ACGT", "TGCA")) for s in SEQUENCES],
        LABELS,
        Tokenizer.for_model(t.model.encoder),
    )
    torch.testing.assert_close(both, (forward + alone.logits(other, "")) / 2)
    one_by_one = [alone.logits(data(t, [s]), "")[0] for s in SEQUENCES]
    # The dynamic range of bfloat16 is what batches of other shapes may differ by.
    torch.testing.assert_close(forward, torch.stack(one_by_one), rtol=0, atol=0.02)
    np.testing.assert_allclose(t.predict(rows).sum(1), 1, rtol=1e-6)


def test_no_rows_are_no_logits():
    t = trainer()
    with pytest.raises(ValueError, match="no rows"):
        t.logits(data(t, []), "")


def test_the_first_best_epoch_counts_and_patience_counts_from_it():
    t = trainer(patience=2, epochs=9)
    events = [{"epoch": n, "dev": {"mcc": m}} for n, m in enumerate((0.1, 0.5, 0.5, 0.4), start=1)]
    assert [t._best(events[:n])["epoch"] for n in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert [t._exhausted(events[:n]) for n in (0, 1, 2, 3, 4)] == [False] * 4 + [True]
    assert not trainer(patience=0)._exhausted(events)


def test_the_best_weights_are_left_in_the_model(tmp_path):
    t = trainer(epochs=5)
    run = Run(tmp_path / "r")  # a directory that no verb has started yet
    rows = data(t)
    weights = []
    epoch = t._epoch

    def watched(*args):
        event = epoch(*args)
        weights.append(copy.deepcopy(t.model.state_dict()))
        return event | {"dev": {"mcc": [0.1, 0.2, 0.9, 0.3, 0.4][len(weights) - 1]}}

    t._epoch = watched
    assert t.fit(run, rows, rows)["epoch"] == 3
    assert all(torch.equal(t.model.state_dict()[n], p) for n, p in weights[2].items())
    assert any(not torch.equal(t.model.state_dict()[n], p) for n, p in weights[4].items())


def test_a_locus_without_features_is_predicted_from_its_sequence(tmp_path):
    features = np.linspace(0, 1, 10)[:, None]
    features[3] = NAN
    t = trainer(features=1, epochs=8, learning_rate=0.05)
    rows = data(t, features=features)
    t.fit(Run(tmp_path), rows, rows)
    assert t.model.fusion.project.abs().max() > 0
    fused = t.logits(rows, "")
    t.model.fusion = None
    plain = t.logits(rows, "")
    assert torch.equal(fused[3], plain[3])
    assert not torch.isclose(fused, plain)[np.arange(10) != 3].any()


def test_training_steps_are_timed_without_the_first():
    assert 0 < trainer().seconds_per_row(data(trainer())) < 1
    assert 0 < trainer(batch_size=64).seconds_per_row(data(trainer())) < 1  # there is one only


def test_scaled_training_in_half_precision_learns():
    """The path of a GPU without bfloat16, such as a T4, on the CPU."""
    t = trainer()
    t.precision = Precision("cpu", torch.float16, scaled=True)
    t.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    batch = data(t).batch(np.arange(8), np.zeros(8, dtype=int))
    losses = [t._step(batch, 0.1) for _ in range(12)]
    assert losses[-1] < losses[0]
    assert t.scaler.get_scale() > 0


def test_a_training_that_diverges_says_so(tmp_path):
    t = trainer(learning_rate=1e38)
    with pytest.raises(InputError, match=r"epoch 1, .*: the loss is not finite; lower --learn"):
        t.fit(Run(tmp_path), data(t), data(t))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("rows", "epochs"), [(100, 30), (5_000, 20), (20_000, 5), (47_356, 3)])
def test_few_rows_are_seen_more_often(rows, epochs):
    assert default_epochs(rows) == epochs
