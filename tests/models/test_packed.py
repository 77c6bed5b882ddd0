"""Packed inference gives what the model gives, whatever the company a sequence is in."""

import inspect
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.attention.varlen import varlen_attn

from cedilla.dna.tokenizer import Tokenizer, pad
from cedilla.models import packed, packed_block
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.packed import PackedModel
from cedilla.models.packed_block import LN2, Packing, attend_padded
from cedilla.models.predictor import chosen_dtype
from cedilla.models.weights import load_directory

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5
PATHS = ("PyTorch float32", "oneDNN float32")


@pytest.fixture(params=["nt_v1_tiny", "nt_v2_tiny"])
def golden(request):
    return GOLDEN / request.param


def random_rows(model, lengths, seed=0):
    rng = np.random.default_rng(seed)
    first, size = len(Tokenizer.for_model(model).special), model.config.vocab_size
    return [np.r_[3, rng.integers(first, size, n - 1)].astype(np.int32) for n in lengths]


def sharpened(model, by):
    """The same model with queries so long that attention looks at one key almost alone."""
    with torch.no_grad():
        for block in model.esm.blocks:
            block.attention.self["query"].weight *= by
    return model


def worst(parts, states, rows):
    return max(
        (part[k] - state[i, : len(row)]).abs().max().item()
        for i, (part, row) in enumerate(zip(parts, rows, strict=True))
        for k, state in enumerate(states)
    )


@pytest.mark.parametrize("path", PATHS)
def test_golden_hidden_states_and_logits(golden, path):
    model = load_directory(golden)
    expected = load_file(golden / "expected.safetensors")
    rows = Tokenizer.for_model(model).encode_ragged(
        json.loads((golden / "sequences.json").read_text())
    )
    fast = PackedModel(model, path=path)
    states = [expected[f"hidden_states.{i}"] for i in range(4)]
    assert worst(fast.hidden(rows, layers=(0, 1, 2, -1)), states, rows) <= TOLERANCE
    logits = [part[None] for part in fast.logits(rows)]
    assert worst(logits, [expected["logits"]], rows) <= TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_golden_logits_of_masked_rows(golden, path):
    model = load_directory(golden)
    expected = load_file(golden / "expected.safetensors")
    mask = expected["attention_mask"].bool()
    rows = [
        ids[inside].int().numpy()
        for ids, inside in zip(expected["masked_input_ids"], mask, strict=True)
    ]
    logits = [part[None] for part in PackedModel(model, path=path).logits(rows)]
    assert worst(logits, [expected["masked_logits"]], rows) <= TOLERANCE


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fused_from", [20, 10_000])
def test_many_rows_of_all_lengths(golden, threads, fused_from, monkeypatch):
    monkeypatch.setattr(packed_block, "FUSED_FROM", fused_from)
    monkeypatch.setattr(packed, "TILE_TOKENS", 60)
    monkeypatch.setattr(packed_block, "SCORES_IN_CACHE", 900)
    model = load_directory(golden)
    rows = random_rows(model, [1, 2, 50, 3, 17, 50, 31, 30, 29, 8, 4])
    ids, mask = pad(rows)
    with torch.no_grad():
        states = model(ids, mask, hidden_states=True).hidden_states
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = PackedModel(model).hidden(rows, layers=(2, 3))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert worst(parts, states[2:4], rows) <= TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_scores_too_large_for_powers_without_a_maximum(golden, path):
    model = sharpened(load_directory(golden), 300.0)
    rows = random_rows(model, [40, 25])
    ids, mask = pad(rows)
    with torch.no_grad():
        states = model(ids, mask, hidden_states=True).hidden_states
    parts = PackedModel(model, path=path).hidden(rows, layers=(1, 3))
    assert all(torch.isfinite(part).all() for part in parts)
    # Scores of hundreds carry float32's rounding of them into the powers.
    assert worst(parts, [states[1], states[3]], rows) <= 2e-3


def test_the_layers_asked_for_come_in_their_order():
    model = load_directory(GOLDEN / "nt_v2_tiny")
    fast, rows = PackedModel(model), random_rows(model, [9])
    both = fast.hidden(rows, layers=(-1, 0))[0]
    assert both.shape == (2, 9, 32)
    assert torch.equal(both[0], fast.hidden(rows)[0][0])
    assert torch.equal(both[1], fast.hidden(rows, layers=(0,))[0][0])
    assert torch.equal(fast.hidden(rows, (-4,))[0], fast.hidden(rows, (0,))[0])
    with pytest.raises(ValueError, match="no layer 4; the model has 0 to 3"):
        fast.hidden(rows, layers=(4,))


def test_logits_at_chosen_places_also_of_one_row_given_twice():
    model = load_directory(GOLDEN / "nt_v2_tiny")
    fast, (row,) = PackedModel(model), random_rows(model, [12])
    whole = fast.logits([row])[0]
    some = fast.logits([row, row, row], at=[np.array([3]), np.array([], int), np.array([5, 0])])
    assert [part.shape[0] for part in some] == [1, 0, 2]
    torch.testing.assert_close(some[0], whole[[3]], atol=1e-6, rtol=0)
    torch.testing.assert_close(some[2], whole[[5, 0]], atol=1e-6, rtol=0)


def test_nothing_in_nothing_out_and_too_long_is_refused():
    fast = PackedModel(load_directory(GOLDEN / "nt_v2_tiny"))
    assert fast.hidden([]) == []
    assert fast.logits([]) == []
    with pytest.raises(ValueError, match="a row without tokens"):
        fast.hidden([np.array([], dtype=np.int32)])
    longest = fast.config.max_tokens
    with pytest.raises(ValueError, match=f"{longest + 1} tokens; the model takes {longest}"):
        fast.hidden([np.full(longest + 1, 7, dtype=np.int32)])


@pytest.mark.parametrize("path", ["PyTorch bfloat16", "oneDNN bfloat16"])
def test_bfloat16_stays_close(path, three_mers):
    model = load_directory(three_mers)
    rows = random_rows(model, [127, 100, 30])
    exact = torch.cat([part[0] for part in PackedModel(model).hidden(rows)])
    close = torch.cat([part[0] for part in PackedModel(model, path=path).hidden(rows)])
    assert torch.nn.functional.cosine_similarity(exact, close, dim=-1).min() > 0.995


def test_float16_whose_powers_would_overflow_is_finite_and_close(three_mers):
    model = load_directory(three_mers)
    rows = random_rows(model, [127, 30])
    exact = torch.cat([part[0] for part in PackedModel(model).hidden(rows)])
    close = torch.cat([part[0] for part in PackedModel(model, precision="float16").hidden(rows)])
    assert torch.nn.functional.cosine_similarity(exact, close, dim=-1).min() > 0.9999


def test_a_model_in_less_is_not_rounded_once_more():
    less = load_directory(GOLDEN / "nt_v2_tiny", dtype=torch.bfloat16)
    rows = random_rows(less, [60])
    same = load_directory(GOLDEN / "nt_v2_tiny", dtype=torch.bfloat16).float()
    difference = PackedModel(less).hidden(rows)[0] - PackedModel(same).hidden(rows)[0]
    assert difference.abs().max() <= TOLERANCE


def test_each_worker_computes_on_one_thread():
    fast = PackedModel(load_directory(GOLDEN / "nt_v2_tiny"))
    before = torch.get_num_threads()
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            pool = fast._pool(threads)
            assert list(pool.map(lambda _: _threads_of_an_operation(), range(9))) == [1] * 9
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def _threads_of_an_operation():
    torch.ones(100_000).exp()
    return torch.get_num_threads()


def test_flash_attention_is_called_as_it_is_defined(monkeypatch):
    """No GPU is at hand: a stand-in with the installed signature computes the definition."""
    installed = inspect.signature(varlen_attn)

    def definition(*args, **kwargs):
        given = installed.bind(*args, **kwargs).arguments
        q, k, v, starts = (given[name] for name in ("query", "key", "value", "cu_seq_q"))
        assert starts.dtype == torch.int32
        parts = []
        for a, b in pairwise(starts.tolist()):
            assert b - a <= given["max_q"]
            scores = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) / q.shape[-1] ** 0.5
            parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[a:b]))
        return torch.cat(parts)

    monkeypatch.setattr(packed_block, "varlen_attn", definition)
    monkeypatch.setattr(packed_block, "_attend_on_cpu", packed_block._attend_on_gpu)
    model = load_directory(GOLDEN / "nt_v2_tiny")
    rows = random_rows(model, [30, 7, 19])
    ids, mask = pad(rows)
    with torch.no_grad():
        states = model(ids, mask, hidden_states=True).hidden_states
    for flash in (True, False):
        monkeypatch.setattr(packed_block, "_has_flash", lambda _, flash=flash: flash)
        assert worst(PackedModel(model).hidden(rows), states[-1:], rows) <= TOLERANCE


def test_bfloat16_keeps_far_positions():
    """The rotary angles of far positions would be wrong by whole turns in bfloat16."""
    config = NTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=75,
    )
    model = NucleotideTransformer(config).eval()
    torch.manual_seed(1)
    model.initialise()
    rows = random_rows(model, [2000])
    exact = PackedModel(sharpened(model, 40.0)).hidden(rows)[0][0]
    close = PackedModel(model, precision="bfloat16").hidden(rows)[0][0]
    assert torch.nn.functional.cosine_similarity(exact, close, dim=-1)[1500:].min() > 0.99


def test_releasing_gives_up_the_weights_and_changes_nothing():
    rows = random_rows(load_directory(GOLDEN / "nt_v2_tiny"), [20])
    kept = PackedModel(load_directory(GOLDEN / "nt_v2_tiny")).hidden(rows)[0]
    model = load_directory(GOLDEN / "nt_v2_tiny")
    released = PackedModel(model, release=True)
    assert all(weight.is_meta for weight in model.esm.blocks.parameters())
    assert torch.equal(released.hidden(rows)[0], kept)


def test_the_model_itself_is_left_as_it_was():
    model = load_directory(GOLDEN / "nt_v2_tiny").to(torch.bfloat16)
    fast = PackedModel(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert fast.hidden(random_rows(model, [5]))[0].dtype == torch.float32


def test_adapters_are_refused_and_not_ignored():
    model = load_directory(GOLDEN / "nt_v2_tiny")
    get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(TypeError, match="merge them"):
        PackedModel(model)


def test_padded_attention_for_older_gpus_equals_the_definition():
    torch.manual_seed(0)
    starts = [0, 3, 10, 11]
    q, k, v = torch.randn(3, 11, 2, 8)
    y = attend_padded(q, k, v, Packing(starts, None, torch.tensor(starts, dtype=torch.int32)))
    for start, end in pairwise(starts):
        part = slice(start, end)
        scores = torch.einsum("ihd,jhd->hij", q[part], k[part]) * LN2
        expected = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[part])
        torch.testing.assert_close(y[part], expected)


def test_precision_follows_the_device(monkeypatch):
    gpu = torch.device("cuda")
    assert chosen_dtype("auto", torch.device("cpu")) == torch.float32
    assert chosen_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert chosen_dtype("auto", gpu) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert chosen_dtype("auto", gpu) == torch.bfloat16
