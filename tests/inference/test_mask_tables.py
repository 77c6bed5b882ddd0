"""What a model says, as tables: rows, columns and coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.likelihood import PseudoLikelihood, marginals
from cedilla.inference.mask_tables import (
    bases_of_masks,
    filled,
    joined,
    kmers_of_masks,
    scores_of_bases,
    scores_of_sequences,
    scores_of_tokens,
)
from cedilla.inference.masks import Masked

TOKENIZER = Tokenizer(2)
TEXTS = [
    Masked(where="", id=id, text=text)
    for id, text in (("a", "ACGT<mask>"), ("b", "AC<mask>N<mask>T"))
]


@pytest.fixture
def mass():
    values = torch.rand(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return 0.9 * values / values.sum(1, keepdim=True)


def test_kmers_are_listed_by_mask_the_most_probable_first(mass):
    frame = kmers_of_masks(TEXTS, filled(mass, 2, TOKENIZER), TOKENIZER)
    assert list(frame) == ["id", "mask", "pos1", "rank", "kmer", "probability", "other"]
    assert frame["id"].tolist() == ["a"] * 2 + ["b"] * 4
    assert frame["mask"].tolist() == [1, 1, 1, 1, 2, 2]
    assert frame["pos1"].tolist() == [5, 5, 3, 3, 6, 6]
    assert frame["rank"].tolist() == [1, 2] * 3
    assert frame["other"].to_numpy() == pytest.approx(0.1)
    kmers = TOKENIZER.vocabulary[TOKENIZER.kmers]
    for i, row in enumerate(mass.tolist()):
        best = sorted(zip(row, kmers, strict=True), reverse=True)[:2]
        of_mask = frame.iloc[2 * i : 2 * i + 2]
        assert of_mask["kmer"].tolist() == [kmer for _, kmer in best]
        assert of_mask["probability"].tolist() == [p for p, _ in best]


def test_each_masked_base_has_its_place_and_four_probabilities(mass):
    frame = bases_of_masks(TEXTS, filled(mass, 1, TOKENIZER), TOKENIZER)
    assert list(frame) == ["id", "mask", "pos1", "A", "C", "G", "T", "other"]
    assert frame["pos1"].tolist() == [5, 6, 3, 4, 6, 7]
    np.testing.assert_array_equal(frame[list("ACGT")], marginals(mass).flatten(0, 1))
    np.testing.assert_allclose(frame[list("ACGT")].sum(axis=1), 1)


def test_parts_are_joined_in_order(mass):
    whole = filled(mass, 3, TOKENIZER)
    parts = joined([filled(mass[:1], 3, TOKENIZER), filled(mass[1:], 3, TOKENIZER)])
    for name in ("kmers", "probabilities", "bases", "other"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def likelihood(row, observed, seed):
    rng = np.random.default_rng(seed)
    tokens, other = rng.normal(size=(2, len(row)))
    unknown = (row < TOKENIZER.kmers.start) | (row == len(TOKENIZER) - 1)
    tokens[unknown] = other[unknown] = np.nan
    bases = rng.normal(size=(len(observed), 4))
    bases[observed < 0] = np.nan
    return PseudoLikelihood(tokens=tokens, other=other, bases=bases, observed=observed)


@pytest.fixture
def scored():
    texts = [Masked(where="", id=id, text=t) for id, t in (("a", "ACGTN"), ("b", "TTA"))]
    rows = TOKENIZER.encode_ragged([text.text for text in texts])
    codes = [np.array([0, 1, 2, 3, -1]), np.array([3, 3, 0])]
    both = [
        [likelihood(row, of, 2 * i), likelihood(row, np.where(of < 0, of, 3 - of)[::-1], 2 * i + 1)]
        for i, (row, of) in enumerate(zip(rows, codes, strict=True))
    ]
    return texts, rows, both


def test_sequences_have_sums_and_means(scored):
    texts, _, both = scored
    one = scores_of_sequences(texts, [strands[:1] for strands in both])
    assert one["id"].tolist() == ["a", "b"]
    assert one["tokens"].tolist() == [2, 2]
    assert one["bases"].tolist() == [4, 3]
    a = both[0][0]
    assert one["pll"][0] == pytest.approx(a.tokens[1] + a.tokens[2])
    assert one["base_pll"][0] == pytest.approx(sum(a.bases[i, i] for i in range(4)))
    assert one["other"][0] == pytest.approx(a.other[1:3].mean())
    two = scores_of_sequences(texts, both)
    assert two["pll"][0] == pytest.approx((a.pll + both[0][1].pll) / 2)
    for frame in (one, two):
        np.testing.assert_allclose(frame["pll"], frame["pll_per_token"] * frame["tokens"])
        np.testing.assert_allclose(frame["pll"], frame["pll_per_base"] * frame["bases"])
        np.testing.assert_allclose(frame["base_pll"], frame["base_pll_per_base"] * frame["bases"])


def test_tokens_keep_their_places_and_n_its_row(scored):
    texts, rows, both = scored
    frame = scores_of_tokens(texts, [strands[0] for strands in both], rows, TOKENIZER)
    assert list(frame) == ["id", "token", "pos1", "kmer", "log_p", "other"]
    assert frame["kmer"].tolist() == ["AC", "GT", "N", "TT", "A"]
    assert frame["token"].tolist() == [1, 2, 3, 1, 2]
    assert frame["pos1"].tolist() == [1, 3, 5, 1, 3]
    wanted = np.concatenate([strands[0].tokens[1:] for strands in both])
    np.testing.assert_array_equal(frame["log_p"], wanted)
    assert frame["log_p"].isna().tolist() == [False, False, True, False, False]


def test_bases_of_both_strands_meet_at_the_same_place(scored):
    texts, _, both = scored
    frame = scores_of_bases(texts, both)
    assert frame["base"].tolist() == list("ACGTN") + list("TTA")
    assert frame["pos1"].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    forward, reverse = both[0]
    # Base 1 of 5 is the other strand's last; its A is the other's T.
    assert frame["log_p_A"][0] == pytest.approx((forward.bases[0, 0] + reverse.bases[4, 3]) / 2)
    assert frame["log_p_G"][1] == pytest.approx((forward.bases[1, 2] + reverse.bases[3, 1]) / 2)
    own = [row[f"log_p_{row['base']}"] for _, row in frame.iterrows() if row["base"] != "N"]
    assert frame["log_p"].dropna().tolist() == own
    one = scores_of_bases(texts, [strands[:1] for strands in both])
    np.testing.assert_array_equal(one["log_p_C"][:5], forward.bases[:, 1])
