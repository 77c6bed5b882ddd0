"""What simple statistics reach on a masked language model's positions: floors for its loss.

Unigram: the frequencies of tokens in the training windows, whatever stands around them. Markov
chain of order m over single bases: a base given the m before it. A masked token is scored by the
bases on both sides, as the model sees them: the probability of token x is proportional to that of
the known bases to its left, x, and the known bases to its right, under the chain.

Known bases are those up to m away and up to the next masked token or the window's end; what lies
beyond is left out. With fewer than m bases before it, a base is given those by the chain of that
lower order. A 1 is added to every count of a token, and of a base after its context.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import MASK, ORDER, Tokenizer
from cedilla.training.genomes import WindowSampler

_BATCH = 1 << 20  # bases counted at a time
_TABLE = 1 << 20  # probabilities computed at a time
# The number that a token's base has among the tokenizer's, from the alphabet's code.
_DIGITS = np.array([ORDER.index(base) for base in alphabet.BASES[:4]], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Counts:
    """Statistics of training windows.

    tokens: float64 (4**k,), how often each k-mer is a token.
    chains: for each order j up to m, float64 (4**(j + 1),), how often j bases precede a base.
    Both are numbered in the tokenizer's order of bases.
    """

    tokens: np.ndarray
    chains: tuple[np.ndarray, ...]


def count(windows: Iterable[np.ndarray], k: int, order: int) -> Counts:
    """Count tokens of k bases and runs of ``order + 1`` bases in windows (n, length) of codes."""
    tokens = np.zeros(4**k, dtype=np.int64)
    longest = np.zeros(4 ** (order + 1), dtype=np.int64)
    for codes in windows:
        digits = _DIGITS[codes]
        tokens += np.bincount(_numbers(digits, k)[:, ::k].ravel(), minlength=len(tokens))
        longest += np.bincount(_numbers(digits, order + 1).ravel(), minlength=len(longest))
    chains = [longest]
    for _ in range(order):
        chains.insert(0, chains[0].reshape(4, -1).sum(axis=0))
    return Counts(tokens.astype(np.float64), tuple(c.astype(np.float64) for c in chains))


def _numbers(digits: np.ndarray, n: int) -> np.ndarray:
    """The numbers (B, length - n + 1) of the n-mers at every base of `digits` (B, length)."""
    span = max(0, digits.shape[1] - n + 1)
    numbers = np.zeros((len(digits), span), dtype=np.int64)
    for i in range(n):
        numbers = numbers * 4 + digits[:, i : i + span]
    return numbers


def baselines(
    sampler: WindowSampler,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    order: int = 5,
    bases: int = 20_000_000,
) -> dict[str, float]:
    """Loss, perplexity and accuracy of a unigram and a Markov model on masked positions.

    Parameters
    ----------
    sampler:
        Of the training genomes; about `bases` of its windows are counted.
    batches:
        The validation set: corrupted ids (B, L), ids (B, L), and which were replaced by
        ``<mask>`` (B, L).
    tokenizer, rng:
        The model's tokenizer; the numbers that choose the windows.
    order:
        Of the chain.
    bases:
        How many bases are counted, at least.

    Returns
    -------
    ``unigram_loss`` and ``markov_loss`` (nats a token, the mean over all masked positions), and
    with the same prefixes ``_perplexity``, its exponential, and ``_accuracy``, the share of
    positions at which the likeliest token is the right one.
    """
    counts = count(_windows(sampler, rng, bases), tokenizer.k, order)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"unigram": [], "markov": []}
    for corrupted, ids, masked in batches:
        found["unigram"].append(score_unigram(counts, ids, masked, tokenizer))
        found["markov"].append(score_markov(counts, corrupted, ids, masked, tokenizer))
    results: dict[str, float] = {}
    for name, parts in found.items():
        loss = float(np.concatenate([losses for losses, _ in parts]).mean())
        right = float(np.concatenate([hits for _, hits in parts]).mean())
        results |= {f"{name}_loss": loss, f"{name}_perplexity": float(np.exp(loss))}
        results[f"{name}_accuracy"] = right
    return results


def _windows(sampler: WindowSampler, rng: np.random.Generator, bases: int) -> Iterator[np.ndarray]:
    n = max(1, _BATCH // sampler.length)
    for _ in range(-(-bases // (n * sampler.length))):
        yield sampler.draw(n, rng).codes


def score_unigram(
    counts: Counts, ids: torch.Tensor, masked: torch.Tensor, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (P,) and whether the likeliest token is right (P,), at the P masked positions."""
    smoothed = counts.tokens + 1
    target = ids[masked].numpy() - len(tokenizer.special)
    return -np.log(smoothed / smoothed.sum())[target], target == smoothed.argmax()


def score_markov(
    counts: Counts,
    corrupted: torch.Tensor,
    ids: torch.Tensor,
    masked: torch.Tensor,
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (P,) and whether the likeliest token is right (P,), at the P masked positions."""
    k, order = tokenizer.k, len(counts.chains) - 1
    tables = [_log_table(chain) for chain in counts.chains]
    digits, known = _bases_of(corrupted.numpy(), tokenizer, order)
    row, token = np.nonzero(masked.numpy())
    at = order + (token - 1) * k  # of the token's first base
    target = ids[masked].numpy() - len(tokenizer.special)
    left = _reach(known, row, at[:, None] - 1 - np.arange(order))
    right = _reach(known, row, at[:, None] + k + np.arange(order))
    losses, hits = np.empty(len(row)), np.empty(len(row), dtype=bool)
    # Positions that know equally many bases on either side share the shape of their sums.
    shapes, shape = np.unique(left * (order + 1) + right, return_inverse=True)
    for group, (n, m) in enumerate((s // (order + 1), s % (order + 1)) for s in shapes.tolist()):
        for some in _pieces(np.flatnonzero(shape == group), 4**k):
            sites = at[some, None] + np.arange(-n, k + m)
            scores = _log_probabilities(tables, digits[row[some, None], sites], n, k)
            best = scores.max(axis=1)
            total = best + np.log(np.exp(scores - best[:, None]).sum(axis=1))
            losses[some] = total - scores[np.arange(len(some)), target[some]]
            hits[some] = scores.argmax(axis=1) == target[some]
    return losses, hits


def _pieces(numbers: np.ndarray, width: int) -> list[np.ndarray]:
    size = max(1, _TABLE // width)
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def _log_table(chain: np.ndarray) -> np.ndarray:
    """Log-probabilities (4**(j + 1),) of a base given the j before it."""
    smoothed = chain.reshape(-1, 4) + 1
    table: np.ndarray = np.log(smoothed / smoothed.sum(axis=1, keepdims=True)).ravel()
    return table


def _bases_of(ids: np.ndarray, tokenizer: Tokenizer, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The bases of tokens (B, L) as digits, and which are known, with unknown ones as margins."""
    k, tokens = tokenizer.k, ids[:, 1:]
    numbers = np.where(tokens == MASK, 0, tokens - len(tokenizer.special))
    digits = numbers[:, :, None] // 4 ** np.arange(k - 1, -1, -1) % 4
    known = np.repeat(tokens != MASK, k, axis=1)
    pads = ((0, 0), (margin, margin))
    return np.pad(digits.reshape(len(ids), -1), pads), np.pad(known, pads)


def _reach(known: np.ndarray, row: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """How many of `sites` (P, n), outwards from each position, are known without a gap."""
    reach: np.ndarray = np.cumprod(known[row[:, None], sites], axis=1).sum(axis=1)
    return reach


def _log_probabilities(
    tables: list[np.ndarray], digits: np.ndarray, left: int, k: int
) -> np.ndarray:
    """Log-probabilities (P, 4**k), up to a constant a row, of each token amid `digits`.

    `digits` (P, left + k + right) are the bases around the token, and its own k. A factor is
    computed for those bases of the token alone that it depends on.
    """
    P, last = len(digits), left + k
    around = digits.copy()
    around[:, left:last] = 0
    own = np.zeros((P, 1))  # by the token's first bases, one more each time
    for i in range(left, last):
        own = np.repeat(own, 4, axis=1) + _factor(tables, around, left, k, i)
    after = np.zeros((P, 1))  # by the token's last bases, from few to more
    for i in range(digits.shape[1] - 1, last - 1, -1):
        factor = _factor(tables, around, left, k, i)
        after = np.tile(after, (1, factor.shape[1] // after.shape[1])) + factor
    return (own.reshape(P, -1, after.shape[1]) + after[:, None]).reshape(P, -1)


def _factor(tables: list[np.ndarray], around: np.ndarray, left: int, k: int, i: int) -> np.ndarray:
    """Log-probability (P, 4**w) of base i, of the token or after it, given those before.

    w is how many bases of the token have a part in it: up to base i itself all its first ones,
    though the earliest may be out of reach; after the token, its last ones within reach.
    """
    n = min(len(tables) - 1, i) + 1
    there = _numbers(around[:, i + 1 - n : i + 1], n)
    if i < left + k:
        token = np.arange(4 ** (i + 1 - left)) % 4 ** min(n, i + 1 - left)
    else:
        beyond = i + 1 - left - k
        token = np.arange(4 ** min(k, max(0, n - beyond))) * 4**beyond
    factor: np.ndarray = tables[n - 1][there + token]
    return factor
