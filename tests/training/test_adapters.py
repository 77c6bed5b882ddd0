"""Adapters: what is trained, counted module by module, and what stays as it was."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory
from cedilla.training.adapters import (
    LORA_TARGETS,
    LoRA,
    default_learning_rate,
    match_modules,
    prepare,
)
from cedilla.training.batches import SequenceData
from cedilla.training.loop import Finetuner, Schedule

V2_50M = NTConfig(
    hidden_size=512, num_hidden_layers=12, num_attention_heads=16, intermediate_size=2048
)


@pytest.fixture
def classifier(tiny):
    torch.manual_seed(0)
    return SequenceClassifier(load_directory(tiny), 2, features=1)


def trained_names(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def train(model, steps: int = 3) -> None:
    schedule = Schedule(
        epochs=1, batch_size=4, learning_rate=1e-2, patience=0, select="mcc", seed=0
    )
    trainer = Finetuner(model, schedule, torch.device("cpu"))
    rows = SequenceData(
        ["ACGTTGCA", "TTGACA", "GGCATT", "ACCA"],
        np.array([0, 1, 0, 1]),
        Tokenizer.for_model(model.encoder),
        features=np.array([[0.1], [0.9], [np.nan], [0.7]]),
    )
    trainer.model.train()
    for _ in range(steps):
        trainer._step(rows.batch(np.arange(4), np.zeros(4, dtype=int)), 0.1)


def test_everything_but_the_pretraining_head_is_trained_in_full(classifier):
    found = prepare(classifier, "full", LoRA())
    names = {name for name, _ in classifier.named_parameters()}
    assert trained_names(classifier) == {n for n in names if ".lm_head." not in n}
    size = sum(p.numel() for n, p in classifier.named_parameters() if ".lm_head." not in n)
    assert (found.trainable, found.total, found.modules) == (size, size, ())
    assert str(found) == f"{size:,} of {size:,} parameters (100.00%)"


def test_the_head_alone(classifier):
    found = prepare(classifier, "head", LoRA())
    assert {name.split(".")[0] for name in trained_names(classifier)} == {"head", "fusion"}
    assert found.trainable == 32 * 32 + 32 + 32 * 2 + 2 + 2 * 32 + 32 * 32


def test_lora_adapts_six_modules_a_layer(classifier):
    found = prepare(classifier, "lora", LoRA())
    assert len(found.modules) == 6 * 2
    assert "2 × attention.output.dense" in str(found)
    names = trained_names(classifier)
    assert all("lora_" in n or n.startswith(("head.", "fusion.")) for n in names)
    # An A and a B for every module that matched, and no other.
    adapted = {re.sub(r"^encoder\.|\.lora_[AB].*", "", n) for n in names if "lora_" in n}
    assert adapted == set(found.modules)
    d, f, r = 32, 48, 8
    per_layer = 4 * r * (d + d) + r * (d + 2 * f) + r * (f + d)
    head = d * d + d + 2 * d + 2
    fusion = 2 * d + d * d
    assert found.trainable == 2 * per_layer + head + fusion


def test_lora_starts_as_the_model_and_changes_only_what_is_trained(classifier):
    ids, mask = Tokenizer.for_model(classifier.encoder).encode(["ACGTTG", "TTGACAACG"])
    features = torch.tensor([[0.3], [float("nan")]])
    with torch.no_grad():
        before = classifier.eval()(ids, mask, features)
    prepare(classifier, "lora", LoRA())
    with torch.no_grad():
        torch.testing.assert_close(classifier.eval()(ids, mask, features), before)
    weights = {n: p.detach().clone() for n, p in classifier.named_parameters()}
    train(classifier)
    trained = trained_names(classifier)
    for name, parameter in classifier.named_parameters():
        assert torch.equal(parameter, weights[name]) == (name not in trained), name


def test_targets_are_last_names_inside_the_blocks(tiny):
    model = load_directory(tiny)
    assert match_modules(model, ("value",)) == tuple(
        f"esm.encoder.layer.{i}.attention.self.value" for i in (0, 1)
    )
    dense = match_modules(model, ("dense",))
    assert len(dense) == 6
    assert not any("lm_head" in name for name in dense)


def test_lora_adapts_the_blocks_of_a_hybrid(hybrid):
    model = SequenceClassifier(load_directory(hybrid), 2)
    found = prepare(model, "lora", LoRA())
    assert len(found.modules) == 6 * 2
    assert found.modules[0] == "encoder.layer.0.attention.self.query"
    assert "2 × attention.output.dense" in str(found)
    assert all("lora_" in n or n.startswith("head.") for n in trained_names(model))
    train(model)


def test_targets_that_match_nothing_are_named(tiny):
    with pytest.raises(InputError) as caught:
        match_modules(load_directory(tiny), ("query", "keys", "out_proj"))
    (problem,) = caught.value.problems
    assert problem.where == "--targets keys,out_proj"
    assert problem.mend == "it has dense, key, query, value"
    with pytest.raises(InputError, match="train it with --method full"):
        match_modules(DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1)), LORA_TARGETS)


def test_v2_50m_has_the_published_counts():
    """72 modules, 1,081,344 + 263,682 trainable, 2.50 % of the classifier."""
    with torch.device("meta"):
        model = SequenceClassifier(NucleotideTransformer(V2_50M), 2, pooling="cls")
        found = prepare(model, "lora", LoRA(rank=8, alpha=16))
    assert len(found.modules) == 72
    head = sum(p.numel() for p in model.head.parameters())
    assert head == 263_682
    assert found.trainable - head == 1_081_344
    # esm.* as published, less the position table and the contact head that v2 does not use.
    encoder = 53_534_401 - 2050 * 512 - 12 * 16 - 1
    assert found.total == encoder + found.trainable
    assert "2.50%" in str(found)


def test_large_models_and_baselines_have_rates_of_their_own():
    assert default_learning_rate("full", 700_000) == 2e-3
    assert default_learning_rate("full", 55_000_000) == 5e-5
    assert default_learning_rate("lora", 55_000_000) == 2e-4
    assert default_learning_rate("full", 300_000, baseline=True) == 1e-3
