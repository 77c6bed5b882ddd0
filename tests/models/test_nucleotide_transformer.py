"""Parity with the reference implementations: every number of the golden models within 2e-5.

And what the reference has not: longer inputs than those of pre-training.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.heads import ClassificationHead, pool
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.packed import PackedModel
from cedilla.models.weights import load_directory, save_directory

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5


@pytest.fixture(params=["nt_v1_tiny", "nt_v2_tiny"])
def golden(request):
    path = GOLDEN / request.param
    model = load_directory(path)
    expected = load_file(path / "expected.safetensors")
    ids, mask = Tokenizer.for_model(model).encode(json.loads((path / "sequences.json").read_text()))
    return model, expected, ids, mask


def difference(a, b, where):
    return (a - b)[where].abs().max().item()


def test_ids_equal_the_reference(golden):
    _, expected, ids, mask = golden
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"].bool())


@torch.no_grad()
def test_logits_hidden_states_and_maps_equal_the_reference(golden):
    model, expected, ids, mask = golden
    fast = model(ids, mask)
    full = model(ids, mask, hidden_states=True, attentions=True)
    for out in (fast, full):
        assert difference(out.logits, expected["logits"], mask) <= TOLERANCE
        assert difference(out.hidden, expected["hidden_states.3"], mask) <= TOLERANCE
    assert fast.hidden_states is None
    assert fast.attentions is None
    assert len(full.hidden_states) == 4
    for i, state in enumerate(full.hidden_states):
        assert difference(state, expected[f"hidden_states.{i}"], mask) <= TOLERANCE
    pairs = (mask[:, :, None] & mask[:, None, :])[:, None].expand(-1, 4, -1, -1)
    assert len(full.attentions) == 3
    for i, weights in enumerate(full.attentions):
        assert difference(weights, expected[f"attentions.{i}"], pairs) <= TOLERANCE


@torch.no_grad()
def test_masked_logits_equal_the_reference(golden):
    model, expected, _, mask = golden
    out = model(expected["masked_input_ids"], mask)
    assert difference(out.logits, expected["masked_logits"], mask) <= TOLERANCE


@torch.no_grad()
def test_classifier_equals_the_reference(golden):
    model, expected, ids, mask = golden
    head = ClassificationHead(32, 3).eval()
    prefix = "classifier_state.classifier."
    head.load_state_dict(
        {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}
    )
    logits = head(pool(model.encode(ids, mask), mask, "cls"))
    assert (logits - expected["classifier_logits"]).abs().max() <= TOLERANCE


@torch.no_grad()
def test_padding_changes_nothing(golden):
    model, _, ids, mask = golden
    for row in range(len(ids)):
        n = int(mask[row].sum())
        alone = model(ids[row : row + 1, :n]).hidden[0]
        assert (alone - model(ids, mask).hidden[row, :n]).abs().max() <= TOLERANCE
        # Without a mask, pads are recognised by their id.
        assert torch.equal(model(ids).hidden[row, :n], model(ids, mask).hidden[row, :n])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "not divisible"),
        ({"vocab_size": 4000}, "vocab_size"),
        ({"sliding_window": 12}, "unknown keys: sliding_window"),
        ({"hidden_size": 36, "num_attention_heads": 4}, "odd"),
        ({"hidden_dropout_prob": 0.1}, "dropout"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    values = json.loads((GOLDEN / "nt_v2_tiny" / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        NTConfig.from_dict({**values, **change})


def test_too_long_an_input_is_refused(golden):
    model, *_ = golden
    with pytest.raises(ValueError, match="65 tokens; the model takes 64"):
        model(torch.full((1, 65), 10))


def test_v2_50m_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = NucleotideTransformer(
            NTConfig(
                hidden_size=512,
                num_hidden_layers=12,
                num_attention_heads=16,
                intermediate_size=2048,
            )
        )
    dead = 2050 * 512 + 12 * 16 + 1  # the position table and the contact head
    assert sum(p.numel() for p in model.parameters()) + dead == 55_904_972


def test_attention_is_fused_unless_maps_are_asked_for(golden, monkeypatch):
    model, _, ids, mask = golden
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs),
    )
    model(ids, mask)  # in evaluation mode, with gradients wanted or not
    assert len(calls) == 3
    model(ids, mask, attentions=True)
    assert len(calls) == 3


def tokens_of_length(n):
    ids = torch.randint(6, 4102, (2, n), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 3
    return ids


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "linear", "ntk", "yarn"])
def test_longer_inputs_are_read_with_rescaled_positions(tmp_path, method):
    model = load_directory(GOLDEN / "nt_v2_tiny")
    short, long = tokens_of_length(64), tokens_of_length(128)
    before = model(short).logits
    model.extend_context(2, method)
    assert model.config.max_tokens == 128
    assert Tokenizer.for_model(model).max_tokens == 128
    assert torch.equal(model(short).logits, before) == (method == "none")
    logits = model(long).logits
    with pytest.raises(ValueError, match="129 tokens; the model takes 128"):
        model(tokens_of_length(129))
    save_directory(model, tmp_path)
    again = load_directory(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(long).logits, logits)
    packed = torch.stack(PackedModel(model).logits([row.int().numpy() for row in long]))
    torch.testing.assert_close(packed, logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_interpolated_positions_are_those_of_the_trained_length():
    model = load_directory(GOLDEN / "nt_v2_tiny")
    ids = tokens_of_length(33)
    expected = model(ids).hidden
    model.extend_context(4, "linear")
    # Pads between the tokens: the token that stood at 3 stands at 12, which is 3 again.
    spread = torch.ones(2, 129, dtype=torch.long)
    spread[:, ::4] = ids
    assert (model(spread).hidden[:, ::4] - expected).abs().max() <= TOLERANCE


def test_the_trained_length_is_kept_when_a_context_is_extended_again():
    model = load_directory(GOLDEN / "nt_v2_tiny")
    model.extend_context(2)
    model.extend_context(4)
    assert model.config.max_tokens == 4 * 64
    scaling = model.config.rope_scaling
    assert (scaling.type, scaling.factor, scaling.trained_tokens) == ("yarn", 4, 64)
    # A model that takes more than it was trained on does not lose by it.
    model.extend_context(2, trained_tokens=16)
    assert model.config.max_tokens == 4 * 64
    assert model.config.rope_scaling.trained_tokens == 16


def test_learned_positions_cannot_be_extended():
    model = load_directory(GOLDEN / "nt_v1_tiny")
    before = model.config
    for method in ("none", "yarn"):
        with pytest.raises(ValueError, match="v1 has a learned table of positions"):
            model.extend_context(2, method)
    assert model.config is before
