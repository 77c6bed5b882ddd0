"""The stream of tiles in windows, each computed in batches of its own, its order restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.pooling import Pooler, Rows
from cedilla.inference.tiles import Tile
from cedilla.models.predictor import Predictor


def windows(tiles: Iterable[Tile], tokens: int) -> Iterator[list[Tile]]:
    """Consecutive tiles that have so many `tokens` together, or just more.

    Batches never reach over a window. So they are the same in every run, wherever it began.
    """
    window: list[Tile] = []
    held = 0
    for tile in tiles:
        window.append(tile)
        held += work(tile)
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


def work(tile: Tile) -> int:
    """Tokens that the model reads of a tile, ``<cls>`` among them."""
    return tile.tokens + 1


def batches(window: Sequence[Tile], tokens: int) -> list[list[int]]:
    """Indices of tiles in batches of like work, about `tokens` each, the longest tiles first."""
    order = sorted(range(len(window)), key=lambda i: -window[i].tokens)
    total = sum(map(work, window))
    count = max(1, round(total / tokens))
    dealt: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for i in order:
        dealt[before * count // total].append(i)
        before += work(window[i])
    return [batch for batch in dealt if batch]


class Reader:
    """Reads tiles with a model, and pools what it sees.

    layers: of the hidden states, 0 the embedding output. batch_tokens: about as many are a batch.
    path: the model's path of computation.
    """

    def __init__(
        self,
        model: Predictor,
        tokenizer: Tokenizer,
        layers: Sequence[int],
        pooler: Pooler,
        batch_tokens: int,
    ) -> None:
        self.pooler, self.batch_tokens = pooler, batch_tokens
        self.path = model.path
        self._model, self._tokenizer, self._layers = model, tokenizer, layers

    def read(self, window: Sequence[Tile], advance: Callable[[int], object]) -> list[Rows]:
        """The rows that the tiles of a window complete; `advance` is told of tokens done."""
        parts: list[Any] = [None] * len(window)
        for batch in batches(window, self.batch_tokens):
            tiles = [window[i] for i in batch]
            for i, part in zip(batch, self.reduced(tiles), strict=True):
                parts[i] = part
            advance(sum(map(work, tiles)))
        rows = map(self.pooler.combine, window, parts)
        return [row for row in rows if row is not None]

    def reduced(self, batch: Sequence[Tile]) -> list[Any]:
        """What each tile of one batch contributes."""
        ids = self._tokenizer.encode_ragged([tile.text for tile in batch])
        states = self._model.hidden(ids, self._layers)
        return list(map(self.pooler.reduce, batch, ids, states))
