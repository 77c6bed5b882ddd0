"""Windows and batches: the same wherever a run began, and of like work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.pooling import pooler
from cedilla.inference.tiles import Tile, Tiling, cut
from cedilla.inference.windows import Reader, batches, windows, work
from cedilla.models.families import prepare
from cedilla.models.zoo import load


def tile(tokens: int) -> Tile:
    return Tile(
        id="x", text="", strand=0, start0=0, tokens=tokens, keep=(0, tokens), first=True, last=True
    )


def test_windows_close_when_they_are_full() -> None:
    tiles = [tile(n) for n in (4, 4, 9, 30, 1, 1)]
    found = list(windows(tiles, 10))
    assert [[t.tokens for t in window] for window in found] == [[4, 4], [9], [30], [1, 1]]
    assert not list(windows([], 10))


@pytest.mark.parametrize("tokens", [20, 100, 1000])
def test_batches_have_like_work_and_every_tile(tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    window = [tile(int(n)) for n in lengths]
    found = batches(window, tokens)
    assert sorted(i for batch in found for i in batch) == list(range(200))
    sizes = [sum(work(window[i]) for i in batch) for batch in found]
    assert max(sizes) < 1.5 * tokens + 60
    in_order = [window[i].tokens for batch in found for i in batch]
    assert in_order == sorted(in_order, reverse=True)


def test_rows_do_not_depend_on_batches_and_come_in_order(
    tiny: Path, dna: Callable[..., str]
) -> None:
    network = load(tiny)
    tokenizer = Tokenizer.for_model(network)
    tiling = Tiling(k=6, capacity=63, overlap=9)
    rng = np.random.default_rng(1)
    texts = [dna(int(rng.integers(1, 900)), seed) for seed in range(30)]
    window = [t for i, text in enumerate(texts) for t in cut(str(i), text, tiling)]
    results = []
    for tokens in (1, 100, 10_000):
        pool = pooler("mean", tokenizer, skip_n=False, strands="forward")
        reader = Reader(prepare(network), tokenizer, (1, 3), pool, tokens)
        done: list[int] = []
        rows = reader.read(window, done.append)
        assert [row.id for row in rows] == [str(i) for i in range(30)]
        assert sum(done) == sum(map(work, window))
        results.append(np.concatenate([row.vectors for row in rows]))
    assert np.abs(results[0] - results[1]).max() < 1e-5
    assert np.abs(results[0] - results[2]).max() < 1e-5
