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
from cedilla.training.losses import Loss
from cedilla.training.optimisation import parameter_groups
from cedilla.training.precision import Precision
from cedilla.training.targets import Target

CPU = torch.device("cpu")
SEQUENCES = ["ACGTTGCA" * n for n in range(1, 11)]
LABELS = np.arange(10) % 2
NAN = float("nan")
BINARY = Target(kind="classes", columns=("label",), names=("0", "1"))


def trainer(features: int = 0, **changes) -> Finetuner:
    torch.manual_seed(0)
    encoder = DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1))
    plan = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "patience": 0, "select": "mcc"}
    schedule = Schedule(**plan | {"seed": 0} | changes)
    model = SequenceClassifier(encoder, 2, features=features)
    return Finetuner(model, schedule, CPU, target=BINARY, criterion=Loss().of(BINARY, LABELS))


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
    groups = trainer().optimiser.param_groups
    assert {g["weight_decay"] for g in groups if g["params"][0].ndim > 1} == {0.01}
    assert {g["weight_decay"] for g in groups if g["params"][0].ndim == 1} == {0.0}
    assert {g["scale"] for g in groups} == {1.0}


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
    np.testing.assert_allclose(t.predictions(both).sum(1), 1, rtol=1e-6)


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


@pytest.mark.parametrize(("rows", "epochs"), [(100, 30), (5_000, 20), (10_000, 10), (47_356, 8)])
def test_few_rows_are_seen_more_often(rows, epochs):
    assert default_epochs(rows) == epochs


def limited(t: Finetuner, most: int) -> list[int]:
    """Let the model take `most` sequences at once; returns the sizes that it is asked for."""
    forward, asked = t.model.encoder.encode, []

    def encode(ids, mask=None):
        asked.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, mask)

    t.model.encoder.encode = encode
    return asked


def gradient(t: Finetuner) -> dict[str, torch.Tensor]:
    batch = data(t).batch(np.arange(10), np.zeros(10, dtype=int))
    t._in_memory(batch, t._gradient)
    return {n: p.grad.clone() for n, p in t.model.named_parameters() if p.grad is not None}


def test_a_batch_that_does_not_fit_is_split_with_the_same_gradient(capsys):
    whole = trainer(batch_size=10)
    whole.precision = Precision("cpu", torch.float32)
    whole.model.eval()  # dropout is drawn in another order for parts
    expected = gradient(whole)
    t = trainer(batch_size=10)
    t.precision = Precision("cpu", torch.float32)
    t.model.eval()
    asked = limited(t, most=3)
    found = gradient(t)
    assert asked == [10, 5, 3, 3, 3, 1]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    err = capsys.readouterr().err
    assert "out of memory: going on with 5 sequences at once" in err
    assert "going on with 3 sequences" in err
    t.logits(data(t), "")  # prediction keeps to what fits as well
    assert t.at_once == 1 or max(asked[6:]) <= 12


def test_memory_that_one_sequence_does_not_fit_into_ends_the_training():
    t = trainer()
    limited(t, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        gradient(t)


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    whole, parts = trainer(batch_size=10), trainer(batch_size=10, accumulate=3)
    for t in (whole, parts):
        t.precision = Precision("cpu", torch.float32)
        t.model.eval()
    assert parts.at_once == 4
    expected, found = gradient(whole), gradient(parts)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_each_layer_below_the_head_is_trained_more_slowly():
    encoder = DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=3))
    model = SequenceClassifier(encoder, 2)
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    scales = {name: group["scale"] for group in groups for name in group["names"]}
    assert scales["head.out_proj.weight"] == 1
    assert scales["encoder.convolutions.2.weight"] == scales["encoder.norms.2.weight"] == 0.5
    assert scales["encoder.last_norm.weight"] == 0.5
    assert scales["encoder.convolutions.0.weight"] == 0.125
    assert scales["encoder.embeddings.weight"] == scales["encoder.stem.bias"] == 0.0625
    assert len(scales) == len(list(model.parameters()))


def test_averaged_weights_are_predicted_with_and_put_away_again():
    t = trainer(ema=0.5, learning_rate=0.1)
    batch = data(t).batch(np.arange(4), np.zeros(4, dtype=int))
    name, weight = "head.out_proj.weight", t.model.head.out_proj.weight
    mean = weight.detach().clone()
    for step in range(1, 4):
        t._step(batch, 0.3)
        mean = mean.lerp(weight.detach(), 1 - min(0.5, (1 + step) / (10 + step)))
    raw = weight.detach().clone()
    with t.averaged():
        torch.testing.assert_close(weight, mean)
    assert torch.equal(weight, raw)
    torch.testing.assert_close(t.average.weights[name], mean)


def test_a_metric_that_is_better_when_lower_chooses_the_lowest():
    t = trainer(select="loss")
    losses = [0.7, 0.4, float("nan"), 0.5]
    events = [{"epoch": n, "dev": {}, "dev_loss": x} for n, x in enumerate(losses, start=1)]
    assert t._best(events)["epoch"] == 2


def test_a_loss_that_is_not_finite_names_the_records(tmp_path):
    t = trainer()
    t.criterion = lambda logits, labels: logits.sum(1) * float("nan")
    with pytest.raises(InputError) as caught:
        t.fit(Run(tmp_path), data(t), data(t))
    assert "epoch 1, step 1, sequence " in str(caught.value)
    assert str(caught.value).count("sequence ") == 4
