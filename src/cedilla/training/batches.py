"""Batches of tokenized sequences: similar lengths together, the order a function of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import Tokenizer, pad


@dataclass(frozen=True, slots=True)
class Batch:
    """ids (B, L), mask (B, L), labels (B,), features (B, F) or None, rows (B,) of the data set."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    features: Tensor | None
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class SequenceData:
    """Sequences tokenized on both strands, with labels (N,) and locus features (N, F).

    Sequences longer than the tokenizer's limit are refused, by their `names` if there are some.
    """

    def __init__(
        self,
        sequences: list[str],
        labels: np.ndarray,
        tokenizer: Tokenizer,
        *,
        features: np.ndarray | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        other_strand = [reverse_complement(sequence) for sequence in sequences]
        self.strands = (
            tokenizer.encode_ragged(sequences),
            tokenizer.encode_ragged(other_strand),
        )
        # Both strands of a sequence have the same number of tokens.
        mend = "cut it, or take a model with a longer context"
        tokenizer.refuse_long(self.strands[0], names, mend=mend)
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.features = None if features is None else torch.from_numpy(features).float()
        self.lengths = np.array([len(row) for row in self.strands[0]])

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, strand: np.ndarray) -> Batch:
        """The given rows, each on strand 0 (as given) or 1 (reverse complement)."""
        ids, mask = pad([self.strands[s][r] for r, s in zip(rows, strand, strict=True)])
        features = None if self.features is None else self.features[rows]
        return Batch(ids, mask, self.labels[rows], features, rows)

    def shuffled(self, size: int, rng: np.random.Generator, *, strands: bool) -> Iterator[Batch]:
        """One epoch for training; with `strands`, each sequence on a random strand."""
        for rows in self._chunks(size, rng):
            strand = rng.integers(0, 1 + strands, len(rows))
            yield self.batch(rows, strand)

    def ordered(self, size: int, strand: int = 0) -> Iterator[Batch]:
        """Every row once, the longest first, so that memory peaks at the start."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield self.batch(rows, np.full(len(rows), strand))

    def _chunks(self, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Shuffled batches of similar length: sorted within pools of 50 batches."""
        order = rng.permutation(len(self))
        chunks = []
        for start in range(0, len(order), 50 * size):
            pool = order[start : start + 50 * size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            chunks += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [chunks[i] for i in rng.permutation(len(chunks))]
