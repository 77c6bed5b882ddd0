"""Adapters: what is trained, counted module by module, and what stays as it was."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory
from cedilla.training.adapters import (
    LORA_TARGETS,
    PRESETS,
    Adapter,
    Method,
    default_learning_rate,
    match_modules,
    prepare,
)

METHODS: tuple[Method, ...] = get_args(Method)
V2_50M = NTConfig(
    hidden_size=512, num_hidden_layers=12, num_attention_heads=16, intermediate_size=2048
)
D, INNER, LAYERS = 32, 48, 2  # of `tiny`
HEAD = D * D + D + D * 2 + 2
FUSION = 2 * 32 + 32 * D
NORMS = 2 * D  # of a LayerNorm
BLOCK = 4 * (D * D + D) + 2 * NORMS + 3 * D * INNER


@pytest.fixture
def classifier(tiny):
    torch.manual_seed(0)
    return SequenceClassifier(load_directory(tiny), 2, features=1)


def trained_names(model: nn.Module) -> set[str]:
    """Without what stands before a module of the encoder."""
    return {
        name.removeprefix("encoder.").removeprefix("esm.encoder.")
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def step(model: SequenceClassifier, steps: int) -> None:
    """Training without decay, so that what changes had a gradient."""
    ids, mask = Tokenizer.for_model(model.encoder).encode(["ACGTTGCA", "TTGACA"])
    features = torch.tensor([[0.1], [0.9]]) if model.fusion else None
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        logits = model.train()(ids, mask, features)
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimiser.step()


def test_everything_but_the_pretraining_head_is_trained_in_full(classifier):
    found = prepare(classifier, "full", Adapter())
    names = {name for name, _ in classifier.named_parameters()}
    assert {n for n, p in classifier.named_parameters() if p.requires_grad} == {
        n for n in names if ".lm_head." not in n
    }
    size = sum(p.numel() for n, p in classifier.named_parameters() if ".lm_head." not in n)
    assert (found.trainable, found.total, found.modules) == (size, size, ())
    assert str(found) == f"{size:,} of {size:,} parameters (100.00%)"


def test_the_head_alone(classifier):
    found = prepare(classifier, "head", Adapter())
    assert {name.split(".")[0] for name in trained_names(classifier)} == {"head", "fusion"}
    assert found.trainable == HEAD + FUSION


def test_the_last_blocks_the_norm_behind_them_and_the_head(classifier):
    found = prepare(classifier, "top", Adapter(top_layers=1))
    assert {re.match(r"layer\.\d|\w+", n)[0] for n in trained_names(classifier)} == {
        "layer.1", "emb_layer_norm_after", "head", "fusion"
    }  # fmt: skip
    assert found.trainable == BLOCK + NORMS + HEAD + FUSION
    assert str(found).endswith("; the head and 1 × block, 1 × emb_layer_norm_after")


def test_what_stands_between_a_hybrids_blocks_and_its_head_is_trained_with_them(hybrid):
    model = SequenceClassifier(load_directory(hybrid), 2)
    found = prepare(model, "top", Adapter(top_layers=2))
    trained = {re.match(r"(encoder\.)?(layer\.\d|\w+)", n)[2] for n in trained_names(model)}
    assert trained == {
        "layer.0", "layer.1", "emb_layer_norm_after", "lengthen", "last_norm", "head"
    }  # fmt: skip
    assert len(found.modules) == 5
    step(model, 1)


def test_biases_and_the_head(classifier):
    found = prepare(classifier, "bias", Adapter())
    norms = {f"layer.{i}.{n}" for i in (0, 1) for n in ("attention.LayerNorm", "LayerNorm")}
    linear = {
        f"layer.{i}.attention.{n}"
        for i in (0, 1)
        for n in ("self.query", "self.key", "self.value", "output.dense")
    }
    biases = {f"{name}.bias" for name in norms | linear | {"emb_layer_norm_after"}}
    assert {
        n for n in trained_names(classifier) if not n.startswith(("head.", "fusion."))
    } == biases
    assert found.trainable == 13 * D + HEAD + FUSION
    assert "; the head and biases of 2 × attention.LayerNorm, 2 × attention.self.query" in str(
        found
    )


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_lora_adapts_six_modules_a_layer(classifier, method):
    found = prepare(classifier, method, Adapter())
    assert len(found.modules) == 6 * LAYERS
    assert "adapters on 2 × attention.self.query" in str(found)
    assert "2 × attention.output.dense, 2 × intermediate.dense, 2 × output.dense" in str(found)
    names = {n for n in trained_names(classifier) if not n.startswith(("head.", "fusion."))}
    parts = ["lora_A.default.weight", "lora_B.default.weight"]
    parts += ["lora_magnitude_vector.default.weight"] * (method == "dora")
    # These parts for every module that matched, and no other.
    modules = [name.removeprefix("esm.encoder.") for name in found.modules]
    assert names == {f"{name}.{part}" for name in modules for part in parts}
    r = 8
    per_layer = 4 * r * (D + D) + r * (D + 2 * INNER) + r * (INNER + D)
    magnitudes = (5 * D + 2 * INNER) * (method == "dora")
    assert found.trainable == LAYERS * (per_layer + magnitudes) + HEAD + FUSION


def test_ia3_scales_keys_values_and_the_inner_activation(classifier):
    found = prepare(classifier, "ia3", Adapter())
    assert str(found).endswith(
        "adapters on 2 × attention.self.key, 2 × attention.self.value, 2 × output.dense"
    )
    shapes = {n: tuple(p.shape) for n, p in classifier.named_parameters() if "ia3_l" in n}
    block = "encoder.esm.encoder.layer.0."
    assert shapes[f"{block}attention.self.key.ia3_l.default"] == (D, 1)
    assert shapes[f"{block}output.dense.ia3_l.default"] == (1, INNER)
    assert found.trainable == LAYERS * (2 * D + INNER) + HEAD + FUSION


def test_ia3_equals_a_forward_pass_by_hand(tiny):
    """One block of version 2 from its formula: the scales stand on k, on v and behind the gate."""
    model = SequenceClassifier(load_directory(tiny), 2)
    encoder: Any = model.encoder
    block, weights = encoder.esm.blocks[1], dict(encoder.esm.blocks[1].named_parameters())
    w = {name: weight.detach().clone() for name, weight in weights.items()}
    for name in w:
        if "self" in name and name.endswith("bias"):
            weights[name].data.normal_()
            w[name] = weights[name].detach().clone()
    prepare(model, "ia3", Adapter())
    torch.manual_seed(1)
    scales = {}
    for name in ("attention.self.key", "attention.self.value", "output.dense"):
        vector = block.get_submodule(name).ia3_l["default"]
        vector.data.normal_(1.0, 0.5)
        scales[name] = vector.detach().flatten()
    x = torch.randn(1, 5, D)
    angles = torch.arange(5)[:, None] * 10_000 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = angles.cos(), angles.sin()
    with torch.no_grad():
        found, _ = block.eval()(x, None, (cos.repeat(1, 2), sin.repeat(1, 2)), False)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def heads(y: Tensor) -> Tensor:
        return y.view(5, 4, 8).transpose(0, 1)

    def turned(y: Tensor) -> Tensor:
        a, b = y[..., :4], y[..., 4:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def normed(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (D,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    h = normed("attention.LayerNorm", x[0])
    q = turned(heads(linear("attention.self.query", h)))
    k = turned(heads(linear("attention.self.key", h) * scales["attention.self.key"]))
    v = heads(linear("attention.self.value", h) * scales["attention.self.value"])
    attended = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    y = x[0] + linear("attention.output.dense", attended.transpose(0, 1).reshape(5, D))
    gate, value = linear("intermediate.dense", normed("LayerNorm", y)).chunk(2, dim=-1)
    inner = F.silu(gate) * value * scales["output.dense"]
    torch.testing.assert_close(found[0], y + linear("output.dense", inner))


@pytest.mark.parametrize(("method", "scale"), [("lora", 6 / 4), ("rslora", 6 / 2)])
def test_the_update_is_scaled_by_rank_or_by_its_root(classifier, method, scale):
    prepare(classifier, method, Adapter(rank=4, alpha=6, targets=("value",)))
    layer: Any = classifier.eval().encoder.get_submodule("esm.encoder.layer.0.attention.self.value")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    nn.init.normal_(b)
    x = torch.randn(3, D)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ a.T @ b.T)


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_model_and_one_step_changes_only_what_is_trained(classifier, method):
    ids, mask = Tokenizer.for_model(classifier.encoder).encode(["ACGTTG", "TTGACAACG"])
    features = torch.tensor([[0.3], [float("nan")]])
    with torch.no_grad():
        before = classifier.eval()(ids, mask, features)
    prepare(classifier, method, Adapter(top_layers=1))
    with torch.no_grad():
        torch.testing.assert_close(classifier.eval()(ids, mask, features), before)
    weights = {n: p.detach().clone() for n, p in classifier.named_parameters()}
    trained = {n for n, p in classifier.named_parameters() if p.requires_grad}
    step(classifier, 1)
    changed = {n for n, p in classifier.named_parameters() if not torch.equal(p, weights[n])}
    assert changed <= trained
    # These have no gradient before what multiplies them has left zero.
    still = {n for n in trained if "lora_A" in n} | {"fusion.rise", "fusion.shift"}
    assert trained - changed == still
    step(classifier, 1)
    changed = {n for n, p in classifier.named_parameters() if not torch.equal(p, weights[n])}
    assert changed == trained


@pytest.mark.parametrize("method", PRESETS)
def test_adapters_sit_on_the_blocks_of_a_hybrid(hybrid, method):
    model = SequenceClassifier(load_directory(hybrid), 2)
    found = prepare(model, method, Adapter())
    assert len(found.modules) == (3 if method == "ia3" else 6) * 2
    assert all(re.match(r"encoder\.layer\.[01]\.", name) for name in found.modules)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "ia3_l" in n or n.startswith("head.") for n in trained)
    step(model, 1)


def test_targets_are_names_inside_the_blocks(tiny):
    model = load_directory(tiny)
    blocks = [f"esm.encoder.layer.{i}" for i in (0, 1)]
    assert match_modules(model, ("value",)) == tuple(f"{b}.attention.self.value" for b in blocks)
    # In peft, this would also be the end of attention.output.dense.
    assert match_modules(model, ("output.dense",)) == tuple(f"{b}.output.dense" for b in blocks)
    dense = match_modules(model, ("dense",))
    assert len(dense) == 6
    assert not any("lm_head" in name for name in dense)


def test_named_targets_of_ia3(classifier):
    found = prepare(classifier, "ia3", Adapter(targets=("query", "dense")))
    assert found.trainable - HEAD - FUSION == 2 * (2 * D + 2 * INNER + INNER)


def test_targets_that_match_nothing_or_twice_are_named(tiny):
    with pytest.raises(InputError) as caught:
        match_modules(load_directory(tiny), ("query", "keys", "out_proj", "query", "dense"))
    nothing, twice = caught.value.problems
    assert nothing.where == "--targets keys,out_proj"
    assert nothing.mend.startswith("it has attention.output.dense, attention.self.key")
    assert nothing.mend.endswith("key, output.dense, query, value")
    assert str(twice) == "--targets query,query: match attention.self.query 2 times; name it once"
    with pytest.raises(InputError, match=r"match output\.dense 2 times"):
        match_modules(load_directory(tiny), ("dense", "output.dense"))
    with pytest.raises(InputError, match="is empty"):
        match_modules(load_directory(tiny), ())


@pytest.mark.parametrize("method", ["lora", "ia3", "top"])
def test_a_method_without_modules_to_train_says_what_to_do(method):
    model = SequenceClassifier(DilatedCNN(CNNConfig(hidden_size=8, num_hidden_layers=1)), 2)
    with pytest.raises(InputError) as caught:
        prepare(model, method, Adapter())
    (problem,) = caught.value.problems
    assert problem.where == f"--method {method}"
    assert problem.mend == "train it with --method full"
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="train it with --method full"):
        match_modules(model.encoder, LORA_TARGETS)


@pytest.mark.parametrize("layers", [0, 3])
def test_more_top_layers_than_there_are(classifier, layers):
    with pytest.raises(InputError, match="2 Transformer blocks; choose from 1 to 2"):
        prepare(classifier, "top", Adapter(top_layers=layers))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_adapted_once(classifier, method):
    prepare(classifier, "ia3", Adapter())
    with pytest.raises(InputError, match="carries adapters already, on 2 × attention"):
        prepare(classifier, method, Adapter())


def test_a_shared_parameter_counts_once(classifier):
    blocks = classifier.encoder.esm.blocks
    single = prepare(classifier, "top", Adapter(top_layers=1))
    blocks[0].attention.self["query"].weight = blocks[1].attention.self["query"].weight
    shared = prepare(classifier, "top", Adapter(top_layers=1))
    assert shared.trainable == single.trainable
    assert shared.total == single.total - D * D
    # What the encoder shares with the unused output layer is still the encoder's.
    classifier.encoder.lm_head.dense.weight = blocks[1].attention.self["query"].weight
    assert prepare(classifier, "top", Adapter(top_layers=1)) == shared


def test_v2_50m_has_the_published_counts():
    """72 modules, 1,081,344 + 263,682 trainable, 2.50 % of the classifier; IA3 36,864."""
    with torch.device("meta"):
        model = SequenceClassifier(NucleotideTransformer(V2_50M), 2, pooling="cls")
        found = prepare(model, "lora", Adapter(rank=8, alpha=16))
    assert len(found.modules) == 72
    head = sum(p.numel() for p in model.head.parameters())
    assert head == 263_682
    assert found.trainable - head == 1_081_344
    # esm.* as published, less the position table and the contact head that v2 does not use.
    encoder = 53_534_401 - 2050 * 512 - 12 * 16 - 1
    assert found.total == encoder + found.trainable
    assert "2.50%" in str(found)
    with torch.device("meta"):
        model = SequenceClassifier(NucleotideTransformer(V2_50M), 2, pooling="cls")
        found = prepare(model, "ia3", Adapter())
    assert found.trainable - head == 36_864


def test_large_models_and_baselines_have_rates_of_their_own():
    assert default_learning_rate("full", 700_000) == 2e-3
    assert default_learning_rate("full", 55_000_000) == 5e-5
    assert default_learning_rate("lora", 55_000_000) == 2e-4
    assert default_learning_rate("ia3", 55_000_000) == 3e-3
    assert default_learning_rate("full", 300_000, baseline=True) == 1e-3
    for method in METHODS:
        small, large = (default_learning_rate(method, n) for n in (700_000, 55_000_000))
        assert small > large > 0
