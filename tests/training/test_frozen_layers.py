"""Frozen lower layers: the same training from a file, kept for the right weights and sequences."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.hybrid import Hybrid, HybridConfig
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.training.adapters import Adapter, freeze, inject, match_modules, prepare
from cedilla.training.batches import SequenceData
from cedilla.training.encoder_cut import split_encoder
from cedilla.training.frozen_layers import describe, keep_frozen_outputs
from cedilla.training.loop import Finetuner, Schedule
from cedilla.training.precision import Precision
from cedilla.training.targets import Target

FLOAT32 = Precision("cpu", torch.float32)
BFLOAT16 = Precision("cpu", torch.bfloat16)
LENGTHS = (60, 30, 47, 60, 12, 33, 60, 59)
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
V1 = {"vocab_size": 4105, "position_embedding_type": "absolute", "token_dropout": True}


def encoder(kind: str):
    torch.manual_seed(0)
    if kind == "hybrid":
        config = HybridConfig(
            hidden_size=16, stem_width=5, dilations=(1, 2), stride=3, num_hidden_layers=3,
            block_size=24, num_attention_heads=2, intermediate_size=32, max_tokens=64,
        )  # fmt: skip
        return Hybrid(config)
    model = NucleotideTransformer(
        NTConfig(num_hidden_layers=3, **SHAPE | (V1 if kind == "v1" else {}))
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def classifier(kind: str, method: str, top_layers: int = 1) -> SequenceClassifier:
    model = SequenceClassifier(encoder(kind), 2, dropout=0.0)
    prepare(model, method, Adapter(top_layers=top_layers))
    return model


def data(model: SequenceClassifier, dna, seed: int = 0) -> SequenceData:
    sequences = [dna(length, seed + i) for i, length in enumerate(LENGTHS)]
    labels = np.arange(len(sequences)) % 2
    return SequenceData(sequences, labels, Tokenizer.for_model(model.encoder))


def trained(model: SequenceClassifier, rows: SequenceData, precision: Precision, steps: int = 4):
    """Losses, and the weights after them."""
    schedule = Schedule(
        epochs=1, batch_size=4, learning_rate=1e-3, patience=0, select="mcc", seed=0
    )
    target = Target(kind="classes", columns=("label",), names=("0", "1"))
    trainer = Finetuner(
        model, schedule, torch.device("cpu"), target=target,
        criterion=lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    )  # fmt: skip
    trainer.precision = precision
    model.train()
    rng = np.random.default_rng(0)
    batches = [b for _ in range(2) for b in rows.shuffled(4, rng, strands=True)][:steps]
    losses = [trainer._step(batch, 0.3) for batch in batches]
    return losses, {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def files(folder):
    return sorted(folder.glob("*.frozen"))


V = ("v1", "v2", "hybrid")
METHODS = (("top", 1), ("top", 2), ("top", 3), ("head", 0))


@pytest.mark.parametrize("kind", V)
@pytest.mark.parametrize(("method", "layers"), METHODS)
def test_training_from_the_file_is_training_without_it(kind, method, layers, dna, tmp_path):
    plain, kept = (classifier(kind, method, max(layers, 1)) for _ in "ab")
    rows = data(plain, dna)
    outputs = keep_frozen_outputs(kept.encoder, [rows], FLOAT32, folder=tmp_path)
    if (method, layers) == ("top", 3) and kind != "hybrid":
        assert outputs is None  # the embedding alone is not worth a file
        return
    lowest = kept.encoder.embeddings if kind == "hybrid" else kept.encoder.esm.embeddings
    lowest.register_forward_pre_hook(lambda *_: pytest.fail("a frozen layer was computed"))
    expected, weights = trained(plain, rows, FLOAT32)
    losses, found = trained(kept, rows, FLOAT32)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5, msg=name)
    assert losses[0] != losses[2]


def test_adapters_above_the_cut_are_trained_from_the_file(dna, tmp_path):
    models = []
    for _ in "ab":
        model = SequenceClassifier(encoder("v2"), 2, dropout=0.0)
        modules = [n for n in match_modules(model.encoder, ("query", "dense")) if ".layer.2." in n]
        inject(model.encoder, {"peft_type": "LORA", "r": 2, "init_lora_weights": False}, modules)
        freeze(model, "lora", tuple(modules))
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    rows = data(models[0], dna)
    assert keep_frozen_outputs(models[1].encoder, [rows], FLOAT32, folder=tmp_path).split.first == 2
    expected, found = (trained(model, rows, FLOAT32)[0] for model in models)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", V)
def test_in_bfloat16_the_loss_differs_by_its_rounding(kind, dna, tmp_path):
    plain, kept = (classifier(kind, "top") for _ in "ab")
    rows = data(plain, dna)
    keep_frozen_outputs(kept.encoder, [rows], BFLOAT16, folder=tmp_path)
    exact, found = (trained(model, rows, BFLOAT16)[0] for model in (plain, kept))
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.01)
    [file] = files(tmp_path)
    whole = classifier(kind, "top")
    keep_frozen_outputs(whole.encoder, [rows], FLOAT32, folder=tmp_path / "float32")
    assert file.stat().st_size - 32 == (files(tmp_path / "float32")[0].stat().st_size - 32) / 2


def test_another_seed_head_or_order_reuses_the_file_and_a_change_never_does(dna, tmp_path):
    def key(change=lambda model: None, seed: int = 0, method: str = "top", **settings) -> str:
        model = classifier("v2", method, **settings)
        change(model.encoder)
        kept = keep_frozen_outputs(
            model.encoder, [data(model, dna, seed)], FLOAT32, folder=tmp_path
        )
        return kept.file.name

    def nudge(name: str):
        def change(encoder) -> None:
            with torch.no_grad():
                dict(encoder.named_parameters())[name].view(-1)[0] += 1e-6

        return change

    block = "esm.encoder.layer.{}.output.dense.weight"
    first = key()
    assert key(nudge(block.format(2))) == first  # it stands above the cut
    assert key(nudge("lm_head.decoder.weight")) == first
    others = [
        key(nudge(block.format(1))), key(nudge("esm.embeddings.word_embeddings.weight")),
        key(seed=1), key(top_layers=2), key(method="head"),
    ]  # fmt: skip
    assert len({first, *others}) == 6
    model = classifier("v2", "top")
    rows = data(model, dna)
    backwards = copy.copy(rows)
    backwards.strands = tuple(strand[::-1] for strand in rows.strands)
    kept = keep_frozen_outputs(model.encoder, [backwards, rows], FLOAT32, folder=tmp_path)
    assert kept.file.name == first


@pytest.mark.parametrize("harm", ["flip", "cut", "other"])
def test_a_damaged_or_foreign_file_is_made_anew_with_a_word(harm, dna, tmp_path, capsys):
    model = classifier("v2", "head")
    rows = data(model, dna)
    file = keep_frozen_outputs(model.encoder, [rows], FLOAT32, folder=tmp_path).file
    good = file.read_bytes()
    before = file.stat().st_mtime_ns
    again = classifier("v2", "head")
    keep_frozen_outputs(again.encoder, [rows], FLOAT32, folder=tmp_path)
    assert "anew" not in capsys.readouterr().err
    assert file.stat().st_mtime_ns >= before
    bad = bytearray(good)
    bad[100] ^= 1
    other = keep_frozen_outputs(
        classifier("v2", "head").encoder, [data(model, dna, 9)], FLOAT32, folder=tmp_path
    ).file
    file.write_bytes({"flip": bytes(bad), "cut": good[:-7], "other": other.read_bytes()}[harm])
    keep_frozen_outputs(classifier("v2", "head").encoder, [rows], FLOAT32, folder=tmp_path)
    assert f"{file} is damaged or of something else" in capsys.readouterr().err
    assert file.read_bytes() == good


def test_sequences_that_are_not_in_the_file_are_computed(dna, tmp_path):
    plain, kept = (classifier("v2", "top").eval() for _ in "ab")
    keep_frozen_outputs(kept.encoder, [data(plain, dna)], FLOAT32, folder=tmp_path)
    batch = data(plain, dna, seed=5).batch(np.arange(4), np.zeros(4, dtype=int))
    torch.testing.assert_close(kept(batch.ids, batch.mask), plain(batch.ids, batch.mask))
    assert kept.encoder.encode(batch.ids).shape == plain.encoder.encode(batch.ids).shape


def test_a_copy_of_the_model_runs_its_own_upper_layers(dna, tmp_path):
    model = classifier("v2", "top").eval()
    rows = data(model, dna)
    keep_frozen_outputs(model.encoder, [rows], FLOAT32, folder=tmp_path)
    twin = copy.deepcopy(model)
    batch = rows.batch(np.arange(4), np.zeros(4, dtype=int))
    with torch.no_grad():
        before = model(batch.ids, batch.mask)
        twin.encoder.esm.blocks[2].output["dense"].weight.zero_()
        assert not torch.equal(twin(batch.ids, batch.mask), before)
        assert torch.equal(model(batch.ids, batch.mask), before)


def test_what_does_not_fit_is_computed_and_said(dna, tmp_path, capsys):
    model = classifier("v2", "top")
    rows = data(model, dna)
    size = 2 * sum(rows.lengths) * 32 * 4 + 32
    assert f"all below block 3 is frozen, and computed once: {size / 1e3:.1f} kB in {tmp_path}" in (
        describe(model.encoder, [rows], FLOAT32, folder=tmp_path)
    )
    assert not files(tmp_path)
    small = {"folder": tmp_path, "limit": size - 1}
    assert "do not fit" in describe(model.encoder, [rows], FLOAT32, **small)
    assert keep_frozen_outputs(model.encoder, [rows], FLOAT32, **small) is None
    assert "not keeping what frozen layers give" in capsys.readouterr().err
    assert not files(tmp_path)


def test_the_file_used_longest_ago_makes_room(dna, tmp_path):
    def keep(seed: int, limit: float = 1e9):
        model = classifier("v2", "head")
        rows = data(model, dna, seed)
        return keep_frozen_outputs(
            model.encoder, [rows], FLOAT32, folder=tmp_path, limit=limit
        ).file

    old, new = keep(0), keep(1)
    left = tmp_path / ".killed.1.part.frozen"
    left.write_bytes(b"x")
    for age, file in enumerate((new, old, left)):
        os.utime(file, (1e9 - age, 1e9 - age))
    keep(0)  # used again
    third = keep(2, limit=2.5 * old.stat().st_size)
    assert files(tmp_path) == sorted((old, third))


def test_nothing_is_kept_where_all_is_trained_or_nothing_known(dna, tmp_path):
    for method in ("full", "lora", "bias"):
        model = classifier("v2", method)
        assert split_encoder(model.encoder) is None
        assert describe(model.encoder, [data(model, dna)], FLOAT32) == ""
    assert split_encoder(DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1))) is None
    # The convolutions of a hybrid have no adapters.
    assert split_encoder(classifier("hybrid", "lora").encoder).first == 0
