"""Sequences longer than a model's context: refused, cropped to their centre, or cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cedilla.inference.tiles import count_tokens

Long = Literal["refuse", "crop", "tile"]
OVERLAP = 0.25  # of a tile, with its neighbour


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Sequences that fit a model.

    owners (M,): the row, of the N given ones, that each of the M sequences comes from.
    long: how many rows were too long as they stood.
    """

    sequences: list[str]
    owners: np.ndarray
    long: int


def fit(sequences: Sequence[str], *, k: int, max_tokens: int, how: Long) -> Fitted:
    """`sequences` for a model that reads k-mers, ``<cls>`` and all, up to `max_tokens`.

    `refuse` leaves all as they are, for the tokenizer to refuse. `crop` keeps the centre of those
    that are too long. `tile` cuts them into tiles that overlap by a quarter.
    """
    capacity = max_tokens - 1
    pieces: list[str] = []
    owners: list[int] = []
    long = 0
    for row, sequence in enumerate(sequences):
        too_long = how != "refuse" and count_tokens(sequence, k) > capacity
        long += too_long
        found = list(_pieces(sequence, k, capacity, how)) if too_long else [sequence]
        pieces += found
        owners += [row] * len(found)
    return Fitted(sequences=pieces, owners=np.array(owners, dtype=np.int64), long=long)


def _pieces(sequence: str, k: int, capacity: int, how: Long) -> Iterator[str]:
    # N and what is left beside it are tokens of one base each: such a piece holds less.
    width = capacity * k
    if how == "crop":
        cut = max(0, len(sequence) - width)
        piece = sequence[cut // 2 : len(sequence) - (cut - cut // 2)]
        while (excess := count_tokens(piece, k) - capacity) > 0:
            piece = piece[excess // 2 : len(piece) - (excess - excess // 2)]
        yield piece
        return
    starts = [0]
    while starts[-1] + width < len(sequence):
        starts.append(min(starts[-1] + int(width * (1 - OVERLAP)), len(sequence) - width))
    for start in starts:
        piece = sequence[start : start + width]
        if count_tokens(piece, k) <= capacity:
            yield piece
        else:
            middle = len(piece) // 2
            for half in (piece[:middle], piece[middle:]):
                yield from _pieces(half, k, capacity, how)
