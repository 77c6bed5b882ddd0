"""Sequences as tiles that fit a model: cut on the token grid, with overlap, and stitched.

The tokenizer cuts a sequence at every N; each run without N is read from its left in k-mers and
its remainder base by base. So a tile that begins and ends between two tokens of the whole has the
very tokens that the whole has there, and neighbouring tiles agree on those that they share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cedilla.dna.alphabet import reverse_complement

Strands = Literal["forward", "both"]
_NS = re.compile("N+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How sequences are cut.

    k: bases per k-mer. capacity: tokens per tile, without ``<cls>``. overlap: tokens that
    neighbouring tiles share at least, fewer than half of the capacity.
    """

    k: int
    capacity: int
    overlap: int
    strands: Strands = "forward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A part of a record, read from one of its strands.

    text: its bases, 5′ to 3′ on its strand. strand: 0 forward, 1 reverse complement. start0: where
    it begins on its strand. tokens: how many it has, without ``<cls>``. keep: which of them,
    from and to, the stitched sequence takes from it. first, last: of the record, over both strands.
    """

    id: str
    text: str
    strand: int
    start0: int
    tokens: int
    keep: tuple[int, int]
    first: bool
    last: bool


class Grid:
    """Where the tokens of a clean sequence begin."""

    def __init__(self, sequence: str, k: int, *, reverse: bool = False) -> None:
        bounds = [0, *(edge for m in _NS.finditer(sequence) for edge in m.span()), len(sequence)]
        edges = np.array(bounds)
        if reverse:
            edges = len(sequence) - edges[::-1]
        lengths = np.diff(edges)  # runs without N, and in between, of N
        self._kmers = lengths // k
        self._kmers[1::2] = 0
        self._k = k
        self._starts = edges[:-1]
        self._first = np.concatenate([[0], np.cumsum(lengths - self._kmers * (k - 1))])

    @property
    def tokens(self) -> int:
        """Tokens of the whole sequence, without ``<cls>``."""
        return int(self._first[-1])

    def start0_of(self, token: np.ndarray) -> np.ndarray:
        """The base at which each of some tokens begins; the sequence's end for the one beyond."""
        run = np.searchsorted(self._first[:-1], token, side="right") - 1
        within = token - self._first[run]
        kmers = np.minimum(within, self._kmers[run])
        start0: np.ndarray = self._starts[run] + kmers * self._k + (within - kmers)
        return start0


def count_tokens(sequence: str, k: int) -> int:
    """Tokens of a clean sequence, without ``<cls>``."""
    if "N" not in sequence:
        return sum(divmod(len(sequence), k))
    return Grid(sequence, k).tokens


def tile_starts(tokens: int, capacity: int, overlap: int) -> np.ndarray:
    """The first token of each tile: all tiles full, spread evenly, sharing `overlap` at least."""
    if tokens <= capacity:
        return np.zeros(1, dtype=np.int64)
    spare = tokens - capacity
    steps = -(-spare // (capacity - overlap))
    return np.arange(steps + 1, dtype=np.int64) * spare // steps


def kept(starts: np.ndarray, tokens: int, capacity: int) -> np.ndarray:
    """From and to (tiles, 2), in tokens of the whole: each token once, where it is deepest inside.

    Neighbours part in the middle of what they share, so that a token is as far as can be from the
    edge at which its tile was cut.
    """
    borders = (starts[1:] + starts[:-1] + capacity) // 2
    return np.stack([np.append(0, borders), np.append(borders, tokens)], axis=1)


def cut(id: str, sequence: str, tiling: Tiling) -> Iterator[Tile]:
    """The tiles of a clean sequence.

    On both strands, tiles come in turns: one strand from its start, the other from its end, so that
    both move along the same bases. Each strand is tokenized from its own 5′ end.
    """
    tokens = count_tokens(sequence, tiling.k)
    starts = tile_starts(tokens, tiling.capacity, tiling.overlap)
    keep = kept(starts, tokens, tiling.capacity)
    ends = np.minimum(starts + tiling.capacity, tokens)
    strands = (0, 1) if tiling.strands == "both" else (0,)
    bases = [_bases(sequence, tiling.k, strand, starts, ends) for strand in strands]
    for turn in range(len(starts)):
        for strand in strands:
            i = len(starts) - 1 - turn if strand else turn
            start0, end0 = bases[strand][i].tolist()
            yield Tile(
                id=id,
                text=_text(sequence, strand, start0, end0),
                strand=strand,
                start0=start0,
                tokens=int(ends[i] - starts[i]),
                keep=(int(keep[i, 0] - starts[i]), int(keep[i, 1] - starts[i])),
                first=turn == 0 and strand == 0,
                last=turn == len(starts) - 1 and strand == strands[-1],
            )


def _bases(sequence: str, k: int, strand: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """From and to (tiles, 2), in bases of the strand."""
    if len(starts) == 1:
        return np.array([[0, len(sequence)]])
    grid = Grid(sequence, k, reverse=bool(strand))
    return np.stack([grid.start0_of(starts), grid.start0_of(ends)], axis=1)


def _text(sequence: str, strand: int, start0: int, end0: int) -> str:
    if strand:
        length = len(sequence)
        return reverse_complement(sequence[length - end0 : length - start0])
    return sequence[start0:end0]
