"""Unigram and Markov baselines beside brute force and a source of known entropy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import MASK, ORDER, Tokenizer
from cedilla.training.genomes import WindowSampler, read_genomes
from cedilla.training.markov import baselines, count, score_markov, score_unigram
from cedilla.training.masking import mask_tokens, tokens_of


def some_batch(rng, k, tokens, rows=6, share=0.3):
    tokenizer = Tokenizer(k)
    codes = rng.integers(0, 4, (rows, tokens * k), dtype=np.uint8)
    ids = tokens_of(codes, tokenizer)
    corrupted, _, masked = mask_tokens(ids, tokenizer, rng, share=share)
    return tokenizer, corrupted, ids, masked


def brute_force(windows, corrupted, ids, masked, *, tokenizer, order):
    """Losses from probabilities of whole strings, each factor counted in text anew."""
    texts = ["".join(alphabet.BASES[c] for c in w) for w in windows]
    memo: dict[str, float] = {}

    def occurrences(run):
        return sum(text.startswith(run, i) for text in texts for i in range(len(text)))

    def chance(base, context):
        # Runs are counted where one of the full order ends, as the chain's counts are.
        if context + base not in memo:
            longer = ["".join(p) for p in product(ORDER, repeat=order - len(context))]
            seen = {b: sum(occurrences(p + context + b) for p in longer) + 1 for b in ORDER}
            memo.update({context + b: n / sum(seen.values()) for b, n in seen.items()})
        return memo[context + base]

    k, losses, hits = tokenizer.k, [], []
    for row, at in np.argwhere(masked.numpy()).tolist():
        tokens = [tokenizer.vocabulary[i] for i in corrupted[row].tolist()][1:]
        known = "".join("?" * k if t == "<mask>" else t for t in tokens)
        before, after = known[: (at - 1) * k], known[at * k :]
        before = before[max(0, len(before) - order) :].rsplit("?", 1)[-1]
        after = after[:order].split("?", 1)[0]
        scores = {}
        for token in map("".join, product(ORDER, repeat=k)):
            text, score = before + token + after, 1.0
            for i in range(len(before), len(text)):
                score *= chance(text[i], text[max(0, i - order) : i])
            scores[token] = score
        right = tokenizer.vocabulary[ids[row, at]]
        losses.append(-np.log(scores[right] / sum(scores.values())))
        hits.append(max(scores, key=scores.__getitem__) == right)
    return np.array(losses), np.array(hits)


@pytest.mark.parametrize(("k", "order"), [(1, 0), (1, 3), (2, 1), (2, 2), (3, 2), (2, 3)])
def test_the_chain_sees_both_sides_as_in_brute_force(k, order):
    rng = np.random.default_rng(k * 10 + order)
    tokenizer, corrupted, ids, masked = some_batch(rng, k, tokens=12)
    windows = rng.choice(4, (3, 60), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    counts = count([windows[:1], windows[1:]], k, order)
    losses, hits = score_markov(counts, corrupted, ids, masked, tokenizer)
    expected, right = brute_force(windows, corrupted, ids, masked, tokenizer=tokenizer, order=order)
    assert len(losses) > 5
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    assert np.array_equal(hits, right)


def test_what_is_masked_elsewhere_is_never_seen():
    rng = np.random.default_rng(0)
    tokenizer, corrupted, ids, masked = some_batch(rng, 2, tokens=20)
    counts = count([rng.integers(0, 4, (5, 90), dtype=np.uint8)], 2, 3)
    losses, _ = score_markov(counts, corrupted, ids, masked, tokenizer)
    other = ids.clone()
    at = np.argwhere(masked.numpy())[0, 1]
    elsewhere = (corrupted == MASK) & (torch.arange(ids.shape[1]) != int(at))
    other[elsewhere] = len(tokenizer.special)
    changed, _ = score_markov(counts, corrupted, other, masked, tokenizer)
    assert changed[0] == losses[0]
    assert (changed != losses).any()


def test_the_unigram_is_the_smoothed_frequency_of_tokens():
    tokenizer = Tokenizer(2)
    windows = np.stack([alphabet.encode(s) for s in ("AAAACGAA", "CGCGAATT")])
    ids = tokens_of(windows[:1], tokenizer)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[0, [1, 3]] = True
    losses, hits = score_unigram(count([windows], 2, 0), ids, masked, tokenizer)
    np.testing.assert_allclose(losses, -np.log([(4 + 1) / (8 + 16), (3 + 1) / (8 + 16)]))
    assert hits.tolist() == [True, False]


def test_a_second_order_source_is_recovered_near_its_entropy(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rates = rng.dirichlet([0.4] * 4, 16)
    bases = np.zeros(60_000, dtype=np.int64)
    edges, draws = np.cumsum(rates, axis=1), rng.random(len(bases))
    for i in range(2, len(bases)):
        context = bases[i - 2] * 4 + bases[i - 1]
        bases[i] = min(3, int(np.searchsorted(edges[context], draws[i])))
    (tmp_path / "g.fa").write_text(">a\n" + "".join("ACGT"[b] for b in bases) + "\n")
    sampler = WindowSampler(read_genomes([str(tmp_path / "g.fa")]), length=240, strands=False)
    tokenizer = Tokenizer(1)
    ids = tokens_of(sampler.draw(400, rng).codes, tokenizer)
    # Few masks, so that the known bases reach as far as the chain does.
    corrupted, _, masked = mask_tokens(ids, tokenizer, rng, share=0.02)
    found = {
        order: baselines(
            sampler, [(corrupted, ids, masked)], tokenizer, rng, order=order, bases=400_000
        )
        for order in (0, 1, 2, 4)
    }
    # With both sides known, the entropy of a base between two on either side, from true rates.
    pairs = np.bincount(bases[:-1] * 4 + bases[1:], minlength=16) / (len(bases) - 1)
    next_ = rates.reshape(4, 4, 4)
    joint = np.einsum("ab,abx,bxc,xcd->abxcd", pairs.reshape(4, 4), next_, next_, next_)
    given = joint / joint.sum(axis=2, keepdims=True)
    entropy = -(joint * np.log(np.where(given > 0, given, 1))).sum()
    loss = {order: result["markov_loss"] for order, result in found.items()}
    assert loss[2] == pytest.approx(entropy, abs=0.08)
    assert loss[4] == pytest.approx(loss[2], abs=0.03)
    assert loss[2] < loss[1] - 0.05 < loss[0] - 0.1
    # Order 0 is the unigram of single bases.
    assert loss[0] == pytest.approx(found[0]["unigram_loss"], abs=1e-3)
    assert found[2]["markov_perplexity"] == pytest.approx(np.exp(loss[2]))
    assert found[2]["markov_accuracy"] > found[2]["unigram_accuracy"] + 0.1
