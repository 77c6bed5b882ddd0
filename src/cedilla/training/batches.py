"""Batches of tokenized sequences: similar lengths together, the order a function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import Tokenizer, pad
from cedilla.training.long_sequences import Long, fit

NO_LABEL = -1  # of a base


@dataclass(frozen=True, slots=True)
class Batch:
    """ids (B, L), mask (B, L), labels, features (B, F) or None, rows (B,) of the data set.

    labels: (B,) int64 classes, (B, T) float32, or (B, S) int64, one a base. bases: in the last
    case (B, S), where each base's outputs stand among those of the tokens, k for each token.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    features: Tensor | None
    rows: np.ndarray
    bases: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in parts of at most `size` rows."""
        if size >= len(self):
            yield self
            return
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            features = None if self.features is None else self.features[part]
            bases = None if self.bases is None else self.bases[part]
            yield Batch(
                self.ids[part], self.mask[part], self.labels[part], features, self.rows[part], bases
            )


class SequenceData:
    """Sequences tokenized on both strands, with labels and locus features (N, F).

    labels: (N,) int64 classes, (N, T) float32 with NaN where one is missing, or (N,) objects, the
    classes (S_i,) of each base.

    Sequences longer than the tokenizer's limit are refused, by their `names` if there are some,
    or cropped or tiled as :mod:`cedilla.training.long_sequences` does. A sequence then has one or
    more pieces; `owners` says whose each piece is.
    """

    def __init__(
        self,
        sequences: Sequence[str],
        labels: np.ndarray,
        tokenizer: Tokenizer,
        *,
        features: np.ndarray | None = None,
        names: Sequence[str] | None = None,
        long: Long = "refuse",
    ) -> None:
        fitted = fit(sequences, k=tokenizer.k, max_tokens=tokenizer.max_tokens, how=long)
        self.owners, self.long = fitted.owners, fitted.long
        other_strand = [reverse_complement(sequence) for sequence in fitted.sequences]
        self.strands = (
            tokenizer.encode_ragged(fitted.sequences),
            tokenizer.encode_ragged(other_strand),
        )
        # Both strands of a sequence have the same number of tokens.
        mend = "cut it, pass --long crop or tile, or take a model with a longer context"
        tokenizer.refuse_long(self.strands[0], names, mend=mend)
        self.tokenizer, self.names = tokenizer, names
        self.labels = labels
        self.features = None if features is None else torch.from_numpy(features).float()
        self.lengths = np.array([len(row) for row in self.strands[0]])

    def __len__(self) -> int:
        """Sequences, however many pieces they were cut into."""
        return len(self.labels)

    @property
    def per_base(self) -> bool:
        """Whether each base has a label."""
        return self.labels.dtype == object

    def name(self, row: int) -> str:
        """Where a sequence stands."""
        return self.names[row] if self.names else f"sequence {row + 1}"

    def batch(self, pieces: np.ndarray, strand: np.ndarray) -> Batch:
        """The given pieces, each on strand 0 (as given) or 1 (reverse complement)."""
        tokens = [self.strands[s][p] for p, s in zip(pieces, strand, strict=True)]
        ids, mask = pad(tokens)
        rows = self.owners[pieces]
        features = None if self.features is None else self.features[rows]
        if not self.per_base:
            return Batch(ids, mask, torch.from_numpy(self.labels[rows]), features, rows)
        turned = [self.labels[r][:: -1 if s else 1] for r, s in zip(rows, strand, strict=True)]
        places = [base_places(row, self.tokenizer) for row in tokens]
        labels, bases = _padded(turned, NO_LABEL), _padded(places, 0)
        return Batch(ids, mask, labels, features, rows, bases)

    def shuffled(self, size: int, rng: np.random.Generator, *, strands: bool) -> Iterator[Batch]:
        """One epoch for training: each sequence once, by a random piece of it.

        With `strands`, each is read on a random strand.
        """
        for pieces in self._chunks(size, rng):
            strand = rng.integers(0, 1 + strands, len(pieces))
            yield self.batch(pieces, strand)

    def ordered(self, size: int, strand: int = 0) -> Iterator[Batch]:
        """Every piece once, the longest first, so that memory peaks at the start."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            pieces = order[start : start + size]
            yield self.batch(pieces, np.full(len(pieces), strand))

    def _chunks(self, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Shuffled batches of similar length: sorted within pools of 50 batches."""
        order = rng.permutation(len(self))
        if len(self.owners) > len(self):
            count = np.bincount(self.owners, minlength=len(self))
            first = np.cumsum(count) - count
            order = (first + (rng.random(len(self)) * count).astype(np.int64))[order]
        chunks = []
        for start in range(0, len(order), 50 * size):
            pool = order[start : start + 50 * size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            chunks += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [chunks[i] for i in rng.permutation(len(chunks))]


def base_places(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Where each base (S,) of tokens `ids` (L,), ``<cls>`` first, is among k a token (L · k)."""
    k = tokenizer.k
    is_kmer = (ids[1:] >= tokenizer.kmers.start) & (ids[1:] < tokenizer.kmers.stop)
    lengths = np.where(is_kmer, k, 1)
    tokens = np.repeat(np.arange(1, len(ids)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(tokens * k + within)


def _padded(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Rows (S_i,) as (B, S) int64, filled up with `value`."""
    longest = max(map(len, rows), default=0)
    out = np.full((len(rows), longest), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)
