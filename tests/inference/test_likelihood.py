"""Likelihoods against explicit loops over all k-mers, and one mask at a time."""

from __future__ import annotations

import math
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import CLS, MASK, PAD, Tokenizer
from cedilla.inference.likelihood import (
    base_probabilities,
    batches,
    conditional_base_log_probabilities,
    kmer_mass,
    maskings,
    pseudo_log_likelihood,
    reverse_complement_mass,
    written_masks,
)
from cedilla.models.families import prepare
from cedilla.models.zoo import load

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ["nt_v1_tiny", "nt_v2_tiny", "three_mers", "hybrid", "mini"]
REAL = "nucleotide-transformer-v2-50m-multi-species"
SEQUENCES = ["ACGTGTACGTGCACGGACGACTAG", "ACGTTGCANNCCGGTAACGTTGCATTCGAT", "TTG"]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    name = request.param
    if name in ("three_mers", "hybrid"):
        return load(request.getfixturevalue(name))
    return load(name if name == "mini" else GOLDEN / name)


@torch.no_grad()
def logits_of(model, row):
    """Logits (L, V) as float64 of one row of token ids, without packing."""
    return model(torch.from_numpy(row[None].astype(np.int64))).logits[0].double()


def softmax(values):
    highest = max(values)
    weights = [math.exp(v - highest) for v in values]
    total = sum(weights)
    return [w / total for w in weights]


def some_logits(tokenizer, n=3):
    return torch.randn(n, len(tokenizer), generator=torch.Generator().manual_seed(n)) * 2


@pytest.mark.parametrize(
    "tokenizer", [Tokenizer(k, version=v) for k, v in ((1, 2), (3, 1), (4, 2))]
)
def test_marginals_sum_the_probabilities_of_all_kmers(tokenizer):
    logits, k = some_logits(tokenizer), tokenizer.k
    found = base_probabilities(logits, tokenizer)
    assert found.shape == (3, k, 4)
    for row, bases in zip(logits.tolist(), found.tolist(), strict=True):
        p = dict(zip(tokenizer.vocabulary, softmax(row), strict=True))
        kmers = ["".join(kmer) for kmer in product("ACGT", repeat=k)]
        total = sum(p[kmer] for kmer in kmers) if k > 1 else None
        for j in range(k):
            if total is None:  # a 1-mer is written like a single base
                first = tokenizer.kmers.start
                wanted = [softmax(row[first : first + 4])["ATCG".index(b)] for b in "ACGT"]
            else:
                wanted = [sum(p[w] for w in kmers if w[j] == b) / total for b in "ACGT"]
            assert bases[j] == pytest.approx(wanted, abs=1e-9)


def test_mass_is_over_the_whole_vocabulary():
    tokenizer = Tokenizer(3)
    logits = some_logits(tokenizer)
    mass = kmer_mass(logits, tokenizer)
    whole = logits.double().softmax(-1)
    assert torch.equal(mass, whole[:, 6:70])
    assert (mass.sum(1) < 1).all()


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_conditionals_compare_the_kmers_that_differ_in_one_base(k):
    tokenizer = Tokenizer(k)
    kmers = ["".join(w) for w in np.random.default_rng(k).choice(list("ACGT"), (3, k))]
    logits = some_logits(tokenizer)
    first = tokenizer.kmers.start
    number = {w: first + i for i, w in enumerate(tokenizer.vocabulary[tokenizer.kmers])}
    ids = np.array([number[w] for w in kmers])
    found = conditional_base_log_probabilities(logits, ids, tokenizer)
    for i, kmer in enumerate(kmers):
        for j in range(k):
            four = [logits[i, number[kmer[:j] + b + kmer[j + 1 :]]].item() for b in "ACGT"]
            assert found[i, j].exp().tolist() == pytest.approx(softmax(four), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_mass_of_a_kmer_goes_to_its_reverse_complement(k):
    tokenizer = Tokenizer(k)
    kmers = tokenizer.vocabulary[tokenizer.kmers]
    mass = torch.arange(4.0**k)[None]
    turned = dict(zip(kmers, reverse_complement_mass(mass)[0].tolist(), strict=True))
    for kmer, value in zip(kmers, mass[0].tolist(), strict=True):
        assert turned[reverse_complement(kmer)] == value


def one_by_one(model, row):
    """log p of each token among its kind, of each base, and the mass of no k-mer, by loops."""
    tokenizer = Tokenizer.for_model(model)
    vocabulary = tokenizer.vocabulary
    kmers = {vocabulary[i]: i for i in range(tokenizer.kmers.start, tokenizer.kmers.stop)}
    singles = {vocabulary[i]: i for i in range(tokenizer.bases.start, tokenizer.bases.stop)}
    tokens, bases, other = [], [], []
    for at, token in enumerate(row.tolist()):
        text = vocabulary[token]
        if token == len(tokenizer) - 1:
            bases.append([math.nan] * 4)
        if text not in {**kmers, **singles}:
            tokens.append(math.nan)
            other.append(math.nan)
            continue
        masked = row.copy()
        masked[at] = MASK
        logits = logits_of(model, masked)[at]
        kind = kmers if token < tokenizer.kmers.stop else singles
        p = dict(zip(kind, softmax(logits[list(kind.values())].tolist()), strict=True))
        tokens.append(math.log(p[text]))
        outside = 1 - logits.softmax(-1)[list(kmers.values())].sum().item()
        other.append(outside if kind is kmers else math.nan)
        for j in range(len(text)):
            four = np.array([p[text[:j] + b + text[j + 1 :]] for b in "ACGT"])
            bases.append(np.log(four / four.sum()).tolist())
    return tokens, bases, other


def test_pseudo_likelihoods_are_those_of_one_mask_at_a_time(model):
    tokenizer = Tokenizer.for_model(model)
    rows = tokenizer.encode_ragged(SEQUENCES)
    found = pseudo_log_likelihood(prepare(model), rows)
    for sequence, row, one in zip(SEQUENCES, rows, found, strict=True):
        tokens, bases, other = one_by_one(model, row)
        np.testing.assert_allclose(one.tokens, tokens, atol=5e-5)
        np.testing.assert_allclose(one.bases, bases, atol=5e-5)
        np.testing.assert_allclose(one.other, other, atol=1e-5)
        assert ["ACGTN"[i] for i in one.observed] == list(sequence)
        known = [i for i, base in enumerate(sequence) if base != "N"]
        own = [bases[i]["ACGT".index(sequence[i])] for i in known]
        assert one.pll == pytest.approx(np.nansum(tokens), abs=1e-3)
        assert one.base_pll == pytest.approx(sum(own), abs=1e-3)
        np.testing.assert_allclose(one.log_p[known], own, atol=5e-5)
        assert np.isnan(one.log_p).sum() == sequence.count("N")
        assert (one.scored_tokens, one.scored_bases) == (np.isfinite(tokens).sum(), len(known))


def test_batches_and_company_change_nothing_but_last_digits(model):
    model = prepare(model)
    rows = Tokenizer.for_model(model).encode_ragged([*SEQUENCES, "", "NN"])
    read = []
    whole = pseudo_log_likelihood(model, rows, advance=read.append)
    small = pseudo_log_likelihood(model, rows, batch_tokens=1)
    alone = [pseudo_log_likelihood(model, [row])[0] for row in rows]
    for a, b, c in zip(whole, small, alone, strict=True):
        np.testing.assert_allclose(a.tokens, b.tokens, atol=2e-5)
        np.testing.assert_allclose(a.bases, c.bases, atol=2e-5)
    # Each k-mer and single base takes a pass over its row.
    assert sum(read) == sum(
        len(row) * one.scored_tokens for row, one in zip(rows, whole, strict=True)
    )
    assert (whole[3].pll, whole[3].scored_tokens, len(whole[4].bases)) == (0, 0, 2)
    assert pseudo_log_likelihood(model, []) == []


def test_each_token_is_masked_once_and_far_from_its_peers():
    tokenizer = Tokenizer(3)
    rows = tokenizer.encode_ragged(["ACG" * 10 + "N" + "AC", "NN", "ACG"])
    for stride in (None, 2, 4, 99):
        wanted = maskings(rows, tokenizer, stride=stride)
        masked = [at.tolist() for i, at in wanted if i == 0]
        assert sorted(t for at in masked for t in at) == [*range(1, 11), 12, 13]
        assert all(np.diff(at).min(initial=99) >= (stride or 99) for at in masked)
        assert [at.tolist() for i, at in wanted if i > 0] == [[1]]
        assert len(masked) == min(stride or 99, 12)


def test_tokens_of_a_stride_that_is_too_wide_are_masked_alone(model):
    model = prepare(model)
    rows = Tokenizer.for_model(model).encode_ragged(SEQUENCES)
    for a, b in zip(
        pseudo_log_likelihood(model, rows),
        pseudo_log_likelihood(model, rows, stride=99),
        strict=True,
    ):
        np.testing.assert_allclose(a.tokens, b.tokens, atol=2e-5)


def test_a_stride_of_16_is_close_on_the_embedded_model(dna):
    model = prepare(load("mini"))
    rows = Tokenizer.for_model(model).encode_ragged([dna(240, 1)[:120] * 2])
    (exact,), (close,) = (
        pseudo_log_likelihood(model, rows, stride=stride) for stride in (None, 16)
    )
    assert np.corrcoef(exact.tokens[1:], close.tokens[1:])[0, 1] > 0.98
    assert 0 < abs(exact.pll - close.pll) / exact.scored_tokens < 0.05


def test_batches_hold_so_many_tokens_and_one_row_at_least():
    rows = [np.zeros(n, dtype=np.int32) for n in (3, 4, 9, 1)]
    wanted = [(i, np.array([0])) for i in range(4)]
    found = [[i for i, _ in batch] for batch in batches(rows, wanted, 7)]
    assert found == [[0, 1], [2], [3]]
    assert list(batches(rows, [], 7)) == []


def test_written_masks_are_found():
    rows = [np.array([CLS, MASK, PAD, MASK]), np.array([CLS])]
    assert [(i, at.tolist()) for i, at in written_masks(rows)] == [(0, [1, 3]), (1, [])]


@pytest.mark.skipif(
    not (Path(os.environ.get("CEDILLA_MODELS", "")) / REAL / "config.json").exists(),
    reason=f"$CEDILLA_MODELS/{REAL} is not there",
)
def test_the_published_model_gives_its_known_answer():
    model = prepare(load(REAL))
    tokenizer = Tokenizer.for_model(model)
    rows = tokenizer.encode_ragged(["ATTCCG" * 3 + "<mask>" + "ATTCCG" * 3])
    (logits,) = model.logits(rows, at=[at for _, at in written_masks(rows)])
    values, numbers = kmer_mass(logits, tokenizer)[0].topk(5)
    kmers = tokenizer.vocabulary[tokenizer.kmers]
    assert [kmers[i] for i in numbers] == ["ATTCCG", "ATTCCC", "ATTCGG", "ATTCCA", "ATTCAG"]
    assert values.tolist() == pytest.approx(
        [0.64054, 0.11347, 0.062689, 0.029963, 0.027496], rel=1e-3
    )
