"""From hidden states of tiles to rows of a result: a row a sequence, a token or a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.tiles import Strands, Tile

Pooling = Literal["mean", "max", "cls", "token", "base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Finished rows of one record.

    vectors (n, layers, D). start0 (n,): where each token begins, or the place of each base;
    None for a row a sequence. tokens: their text, in a row a token.
    """

    id: str
    vectors: np.ndarray
    start0: np.ndarray | None = None
    tokens: list[str] | None = None


class SequencePooling:
    """One vector per sequence and layer: mean, max or cls.

    Sums run in float64 over the tokens that each tile contributes, so that a sequence in tiles is
    pooled over all its tokens. On both strands, the result is the mean of the strands' vectors.
    """

    def __init__(self, pooling: Pooling, tokenizer: Tokenizer, *, skip_n: bool) -> None:
        self._pooling, self._skip_n = pooling, skip_n
        self._n = len(tokenizer) - 1
        self._total, self._count = np.empty(0), np.zeros(2)

    def reduce(self, tile: Tile, ids: np.ndarray, states: Tensor) -> tuple[np.ndarray, int]:
        """What a tile contributes (layers, D), and how many vectors it stands for.

        ids (1 + L,) and states (layers, 1 + L, D) begin with ``<cls>``.
        """
        if self._pooling == "cls":
            return states[:, 0].double().numpy(), 1
        first, end = 1 + tile.keep[0], 1 + tile.keep[1]
        chosen = states[:, first:end]
        if self._skip_n and (unknown := ids[first:end] == self._n).any():
            chosen = chosen[:, torch.from_numpy(~unknown)]
        n = chosen.shape[1]
        if self._pooling == "mean":
            return chosen.sum(dim=1, dtype=torch.float64).numpy(), n
        if n == 0:
            return np.full((len(states), states.shape[2]), -np.inf), 0
        return chosen.amax(dim=1).double().numpy(), n

    def combine(self, tile: Tile, part: tuple[np.ndarray, int]) -> Rows | None:
        """Add a tile's part, in the order of the tiles; the row, once its record is complete."""
        value, n = part
        highest = self._pooling == "max"
        if tile.first:
            self._total = np.full((2, *value.shape), -np.inf if highest else 0.0)
            self._count = np.zeros(2)
        before = self._total[tile.strand]
        self._total[tile.strand] = np.maximum(before, value) if highest else before + value
        self._count[tile.strand] += n
        if not tile.last:
            return None
        strands = 1 + tile.strand
        totals, counts = self._total[:strands], self._count[:strands]
        vectors = totals if highest else totals / counts[:, None, None]
        return Rows(id=tile.id, vectors=vectors.mean(axis=0, keepdims=True).astype(np.float32))

    def carry(self) -> dict[str, np.ndarray]:
        """What a later process needs to go on in the middle of a record."""
        return {"total": self._total, "count": self._count}

    def restore(self, carry: dict[str, np.ndarray]) -> None:
        """Go on from another's `carry`."""
        self._total, self._count = carry["total"], carry["count"]


class PositionPooling:
    """A vector per token, or per base: then each base has its k-mer's vector.

    On both strands, a base has the mean of its two vectors. Tokens of the two strands do not
    cover the same bases, so that there is no mean of them.
    """

    def __init__(self, pooling: Pooling, tokenizer: Tokenizer, strands: Strands) -> None:
        self._pooling, self._tokenizer = pooling, tokenizer
        self._strands = 2 if strands == "both" else 1
        self._pending: list[np.ndarray] = []
        self._done = 0

    def widths(self, ids: np.ndarray) -> np.ndarray:
        """How many bases each token covers."""
        first = len(self._tokenizer.special)
        is_kmer = (ids >= first) & (ids < first + 4**self._tokenizer.k)
        return np.where(is_kmer, self._tokenizer.k, 1)

    def reduce(self, tile: Tile, ids: np.ndarray, states: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The rows (n, layers, D) of the tokens or bases that a tile keeps, and the tokens' ids.

        Rows of the reverse strand come in the forward strand's order.
        """
        first, end = 1 + tile.keep[0], 1 + tile.keep[1]
        vectors = states[:, first:end].transpose(0, 1).numpy()
        if self._pooling == "base":
            vectors = np.repeat(vectors, self.widths(ids[first:end]), axis=0)
        return vectors[:: -1 if tile.strand else 1], ids[first:end]

    def combine(self, tile: Tile, part: tuple[np.ndarray, np.ndarray]) -> Rows | None:
        """Add a tile's part, in the order of the tiles; the rows that are complete by it."""
        vectors, ids = part
        if tile.first:
            self._pending, self._done = [vectors[:0]] * self._strands, 0
        if self._pooling == "token":
            return self._tokens(tile, vectors, ids)
        self._pending[tile.strand] = np.concatenate([self._pending[tile.strand], vectors])
        n = min(map(len, self._pending))
        mean = np.mean([strand[:n] for strand in self._pending], axis=0)
        self._pending = [strand[n:].copy() for strand in self._pending]
        self._done += n
        return Rows(id=tile.id, vectors=mean, start0=np.arange(self._done - n, self._done))

    def _tokens(self, tile: Tile, vectors: np.ndarray, ids: np.ndarray) -> Rows:
        widths = self.widths(ids)
        start0 = self._done + np.cumsum(widths) - widths
        self._done += int(widths.sum())
        texts = [self._tokenizer.vocabulary[i] for i in ids.tolist()]
        return Rows(id=tile.id, vectors=vectors, start0=start0, tokens=texts)

    def carry(self) -> dict[str, np.ndarray]:
        """What a later process needs to go on in the middle of a record."""
        held = {f"pending{strand}": rows for strand, rows in enumerate(self._pending)}
        return {"done": np.array(self._done), **held}

    def restore(self, carry: dict[str, np.ndarray]) -> None:
        """Go on from another's `carry`."""
        self._done = int(carry["done"])
        self._pending = [carry[f"pending{strand}"] for strand in range(len(carry) - 1)]


class Pooler(Protocol):
    """How the hidden states of tiles become rows.

    `reduce` may be called in any order, `combine` in that of the tiles. `carry` is what a later
    process needs to `restore` in order to go on in the middle of a record.
    """

    def reduce(self, tile: Tile, ids: np.ndarray, states: Tensor) -> Any: ...
    def combine(self, tile: Tile, part: Any) -> Rows | None: ...
    def carry(self) -> dict[str, np.ndarray]: ...
    def restore(self, carry: dict[str, np.ndarray]) -> None: ...


def pooler(pooling: Pooling, tokenizer: Tokenizer, *, skip_n: bool, strands: Strands) -> Pooler:
    """The pooling of a name."""
    if pooling in ("token", "base"):
        return PositionPooling(pooling, tokenizer, strands)
    return SequencePooling(pooling, tokenizer, skip_n=skip_n)
