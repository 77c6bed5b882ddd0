"""The hybrid: shapes, pads that change nothing, its methylation channel, its configuration."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import cedilla
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer, pad
from cedilla.errors import InputError
from cedilla.models import padded
from cedilla.models.families import prepare
from cedilla.models.hybrid import MODEL_TYPE, Hybrid, HybridConfig
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.padded import PaddedModel
from cedilla.models.weights import load_directory, read_config, save_directory

SMALL = HybridConfig(
    hidden_size=16,
    stem_width=5,
    dilations=(1, 2, 4),
    stride=4,
    block_size=24,
    num_attention_heads=2,
    intermediate_size=32,
    max_tokens=200,
)
LENGTHS = [1, 2, 3, 4, 5, 9, 40, 41, 43, 100]
TOLERANCE = 1e-5


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    return Hybrid(dataclasses.replace(SMALL, **changes)).eval()


def random_rows(lengths, seed=0):
    """Rows of ``<cls>`` and so many bases."""
    rng = np.random.default_rng(seed)
    return [np.r_[CLS, rng.integers(6, 15, n)].astype(np.int32) for n in lengths]


@pytest.fixture
def trained():
    """One whose methylation channel is not zero any more."""
    model = model_of(methylation=True)
    torch.nn.init.normal_(model.methylation.weight)
    return model


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 0}, {"stride": 1}, {"stride": 7}])
@torch.no_grad()
def test_shapes(changes):
    model = model_of(**changes)
    ids, mask = pad(random_rows([30, 7]))
    out = model(ids, mask, hidden_states=True)
    assert out.logits.shape == (2, 31, 15)
    assert len(out.hidden_states) == model.config.last_layer + 1 == 5
    assert {state.shape for state in out.hidden_states} == {(2, 31, 16)}
    assert torch.equal(out.hidden, out.hidden_states[-1])
    assert torch.equal(model.encode(ids, mask), out.hidden)
    assert torch.equal(model.encode(ids), out.hidden)  # pads are known by their id
    two, one = model.states(ids, mask, layers=[2, 1])
    assert torch.equal(two, out.hidden_states[2])
    assert torch.equal(one, out.hidden_states[1])


@torch.no_grad()
def test_the_first_state_is_the_mean_over_bases():
    model = model_of()
    ids, mask = pad(random_rows([30, 7]))
    for state in model(ids, mask, hidden_states=True).hidden_states:
        for row, n in zip(state, (30, 7), strict=True):
            torch.testing.assert_close(row[0], row[1 : n + 1].mean(0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channel", [False, True])
def test_pads_change_nothing(trained, training, channel):
    trained.train(training)
    rows = random_rows(LENGTHS)
    ids, mask = pad(rows)
    beta = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) if channel else None
    layers = range(trained.config.last_layer + 1)
    together = trained.states(ids, mask, beta, layers=layers)
    for i, row in enumerate(rows):
        own = None if beta is None else beta[i : i + 1, : len(row)]
        alone = trained.states(torch.from_numpy(row)[None].long(), None, own, layers=layers)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i, : len(row)], b[0], rtol=0, atol=TOLERANCE)


def test_gradients_do_not_see_pads():
    """Those of a padded batch are the sum of those of its rows."""
    model = model_of().train()
    rows = random_rows([3, 20, 21])
    ids, mask = pad(rows)
    found = torch.autograd.grad(model(ids, mask).logits[mask].square().sum(), model.parameters())
    singles = [model(torch.from_numpy(r)[None].long()).logits.square().sum() for r in rows]
    wanted = torch.autograd.grad(sum(singles), model.parameters())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pads", [False, True])
def test_checkpointing_changes_no_gradient(pads):
    model = model_of().train()
    ids, mask = pad(random_rows([24, 11 if pads else 24]))
    found = []
    calls = []
    hook = model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        loss = model(ids, mask).logits[mask].square().mean()
        found.append(torch.autograd.grad(loss, model.parameters()))
    hook.remove()
    assert len(calls) == 3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_the_methylation_channel_changes_nothing_at_the_start():
    plain, with_channel = model_of(), model_of(methylation=True)
    assert not with_channel.methylation.weight.any()
    absent = with_channel.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert absent == ["methylation.weight"]
    ids, mask = pad(random_rows([30, 7]))
    assert torch.equal(with_channel.encode(ids, mask, torch.rand(ids.shape)), plain.encode(ids))


@torch.no_grad()
def test_a_base_without_a_value_adds_nothing_and_any_value_something(trained):
    ids, mask = pad(random_rows([30, 7]))
    nothing = torch.full(ids.shape, torch.nan)
    plain = trained.encode(ids, mask)
    assert torch.equal(trained.encode(ids, mask, nothing), plain)
    for beta in (0.0, 0.5, 1.0):  # one half was measured too
        some = nothing.clone()
        some[0, 5] = beta
        found = trained.encode(ids, mask, some)
        assert (found[0] - plain[0]).abs().max() > 1e-2
        assert torch.equal(found[1], plain[1])


def test_values_that_are_not_measured_stop_no_gradient(trained):
    ids, mask = pad(random_rows([30]))
    beta = torch.full(ids.shape, torch.nan)
    beta[0, 3] = 0.9
    (gradient,) = torch.autograd.grad(
        trained.encode(ids, mask, beta).square().sum(), trained.methylation.weight
    )
    assert gradient.isfinite().all()
    assert gradient.any()


def test_what_it_cannot_read_is_refused():
    model = model_of()
    ids, mask = pad(random_rows([4]))
    with pytest.raises(ValueError, match="no methylation channel"):
        model.encode(ids, mask, torch.rand(ids.shape))
    with pytest.raises(ValueError, match="201 tokens; the model takes from 2 to 200"):
        model.encode(torch.full((1, 201), 7))
    with pytest.raises(ValueError, match="1 tokens; the model takes from 2"):
        model.encode(torch.tensor([[CLS]]))


@torch.no_grad()
def test_a_masked_base_changes_its_own_answer_and_that_of_others():
    model = model_of()
    (row,) = random_rows([40])
    ids = torch.from_numpy(row)[None].long()
    masked = ids.clone()
    masked[0, 20] = MASK
    gap = (model(ids).logits - model(masked).logits)[0].abs().amax(-1)
    assert gap[20] > 1e-3
    assert gap[1] > 1e-7  # far beyond the convolutions: by the blocks


def test_random_weights_are_drawn_by_the_seed():
    first, other = model_of(1), model_of(2)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    for model in (first, other):
        torch.manual_seed(3)
        model.initialise()
    state = other.state_dict()
    assert all(torch.equal(w, state[n]) for n, w in first.state_dict().items())
    assert not first.embeddings.weight[1].any()


@pytest.mark.parametrize("changes", [{}, {"methylation": True}, {"dilations": ()}])
@torch.no_grad()
def test_a_directory_gives_the_model_back(tmp_path, changes):
    model = model_of(**changes)
    save_directory(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == MODEL_TYPE
    assert read_config(tmp_path / "config.json") == model.config
    found = cedilla.load(tmp_path)
    assert isinstance(found, Hybrid)
    assert not found.training
    ids, mask = pad(random_rows([9, 30]))
    assert torch.equal(found(ids, mask).logits, model(ids, mask).logits)
    save_directory(model, tmp_path, dtype=torch.bfloat16)
    half = load_directory(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.stem.weight, model.stem.weight.bfloat16())


def test_a_directory_with_other_weights_is_refused(tmp_path):
    save_directory(model_of(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in {
        ("hidden_size", 18): r"stem.weight: has shape \(16, 16, 5\); the model's is \(18, 16, 5\)",
        ("num_hidden_layers", 1): r"encoder.layer.1.LayerNorm.bias: is no weight of this model",
        ("methylation", True): "methylation.weight: is missing",
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(settings | dict([change])))
        with pytest.raises(InputError, match=message):
            load_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', not esm .* or cedilla-hybrid"),
        ({"wings": 2}, "unknown keys: wings"),
        ({"stem_width": 4}, "stem_width 4 must be odd"),
        ({"kernel_size": 0}, "kernel_size 0 must be odd"),
        ({"stride": 0}, "stride and dilations must be 1 at least"),
        ({"dilations": [1, 0]}, "stride and dilations must be 1 at least"),
        ({"num_attention_heads": 5}, "not divisible by num_attention_heads 5"),
        ({"stem_width": "5"}, "'<' not supported"),
    ],
)
def test_other_configurations_are_refused(tmp_path, change, message):
    save_directory(model_of(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(InputError, match=message):
        cedilla.load(tmp_path)


def test_settings_that_are_not_written_are_the_usual_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE}))
    assert read_config(tmp_path / "config.json") == HybridConfig()


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tile", [30, 2048])
def test_inference_does_not_depend_on_the_company_of_a_row(threads, tile, monkeypatch):
    monkeypatch.setitem(padded.TILE_TOKENS, "cpu", tile)
    model = model_of()
    rows = random_rows([*LENGTHS, 40, 38, 199, 1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = prepare(model)
        assert isinstance(fast, PaddedModel)
        assert fast.path == "PyTorch float32"
        parts = fast.hidden(rows, layers=(0, 2, -1))
        places = [np.array([len(row) - 1, 0]) for row in rows]
        logits = fast.logits(rows, at=places)
    finally:
        torch.set_num_threads(before)
    for row, part, some, at in zip(rows, parts, logits, places, strict=True):
        ids = torch.from_numpy(row)[None].long()
        states = model(ids, hidden_states=True).hidden_states
        wanted = torch.cat([states[0], states[2], states[-1]])
        torch.testing.assert_close(part, wanted, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(some, model(ids).logits[0, at], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_less_precision_stays_close(precision):
    model = model_of()
    rows = random_rows([150, 20])
    exact = torch.cat([part[0] for part in prepare(model).hidden(rows)])
    fast = prepare(model, precision=precision)
    assert fast.path == f"PyTorch {precision}"
    found = fast.hidden(rows)
    assert found[0].dtype == torch.float32
    close = torch.cat([part[0] for part in found])
    assert 0 < (exact - close).abs().max() < 0.1
    assert torch.nn.functional.cosine_similarity(exact, close, dim=-1).min() > 0.999
    assert next(model.parameters()).dtype == torch.float32


def test_inference_refuses_what_the_model_cannot_read():
    fast = prepare(model_of())
    assert fast.hidden([]) == fast.logits([]) == []
    with pytest.raises(ValueError, match="there is no layer 5; the model has 0 to 4"):
        fast.hidden(random_rows([3]), layers=(5,))
    with pytest.raises(ValueError, match="201 tokens; the model takes 200"):
        fast.hidden(random_rows([200]))
    with pytest.raises(ValueError, match="a row without a base"):
        fast.hidden(random_rows([0, 9]))
    with pytest.raises(InputError, match="the kernels of 'oneDNN float32' do not work"):
        prepare(model_of(), path="oneDNN float32")


def test_weights_in_less_are_read_in_float32_and_the_model_is_left_alone():
    model = model_of().bfloat16()
    rows = random_rows([20])
    (found,) = prepare(model).hidden(rows)
    assert model.stem.weight.dtype == torch.bfloat16
    (wanted,) = prepare(model.float()).hidden(rows)
    assert torch.equal(found, wanted)


def test_the_tokenizer_reads_single_bases(hybrid):
    model = load_directory(hybrid)
    tokenizer = Tokenizer.for_model(model)
    ids, _ = tokenizer.encode(["ACGTN<mask>a"])
    # The ids of 1-mers, never those of left-over bases, which are written alike.
    assert ids.tolist() == [[CLS, 6, 8, 9, 7, 14, MASK, 6]]
    assert not isinstance(model, NucleotideTransformer)
