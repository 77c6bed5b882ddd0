"""Tiles: cut between tokens, spread evenly, every token once, in the middle of what is shared."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import Tokenizer
from cedilla.inference.tiles import Grid, Tiling, count_tokens, cut, kept, tile_starts

BASES = st.text("ACGTACGTACGTN", min_size=1, max_size=200)


def tokens_of(text: str, k: int) -> list[int]:
    return Tokenizer(k).encode_ragged([text])[0][1:].tolist()


@given(BASES, st.sampled_from([3, 6]), st.booleans())
def test_the_grid_is_the_tokenizer(text: str, k: int, reverse: bool) -> None:
    strand = reverse_complement(text) if reverse else text
    grid = Grid(text, k, reverse=reverse)
    ids = tokens_of(strand, k)
    assert grid.tokens == len(ids) == count_tokens(strand, k)
    widths = [k if 6 <= i < 6 + 4**k else 1 for i in ids]
    assert grid.start0_of(np.arange(len(ids) + 1)).tolist() == [0, *np.cumsum(widths)]


@given(st.integers(1, 2000), st.integers(4, 100), st.data())
def test_tiles_are_full_evenly_spread_and_as_few_as_can_be(
    tokens: int, capacity: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, (capacity - 1) // 2))
    starts = tile_starts(tokens, capacity, overlap)
    assert starts[0] == 0
    if tokens <= capacity:
        assert len(starts) == 1
        return
    assert starts[-1] + capacity == tokens
    steps = np.diff(starts)
    assert steps.max() <= capacity - overlap
    assert steps.max() - steps.min() <= 1
    assert len(starts) == 1 + -(-(tokens - capacity) // (capacity - overlap))
    keep = kept(starts, tokens, capacity)
    assert keep[0, 0] == 0
    assert keep[-1, 1] == tokens
    assert (keep[1:, 0] == keep[:-1, 1]).all()
    left = starts[:-1] + capacity - keep[:-1, 1]  # of what is shared, what the left tile gives up
    right = keep[1:, 0] - starts[1:]
    assert (abs(left - right) <= 1).all()
    assert (left >= overlap // 2).all()


@given(BASES, st.integers(4, 20), st.sampled_from(["forward", "both"]))
def test_tiles_have_the_tokens_of_the_whole(text: str, capacity: int, strands: str) -> None:
    tiling = Tiling(k=3, capacity=capacity, overlap=capacity // 3, strands=strands)
    tiles = list(cut("x", text, tiling))
    assert [t.first for t in tiles] == [True] + [False] * (len(tiles) - 1)
    assert [t.last for t in tiles] == [False] * (len(tiles) - 1) + [True]
    for strand in range(1 + (strands == "both")):
        whole = reverse_complement(text) if strand else text
        own = [tile for tile in tiles if tile.strand == strand]
        stitched = []
        for tile in own[:: -1 if strand else 1]:
            assert whole[tile.start0 :].startswith(tile.text)
            ids = tokens_of(tile.text, 3)
            assert len(ids) == tile.tokens <= capacity
            stitched += ids[slice(*tile.keep)]
        assert stitched == tokens_of(whole, 3)


def test_both_strands_move_along_the_same_bases() -> None:
    text = "ACGTTGCAAC" * 30
    tiles = list(cut("x", text, Tiling(k=3, capacity=20, overlap=4, strands="both")))
    assert [tile.strand for tile in tiles] == [0, 1] * (len(tiles) // 2)
    forward = [tile.start0 for tile in tiles[::2]]
    backward = [len(text) - tile.start0 - len(tile.text) for tile in tiles[1::2]]
    assert max(abs(a - b) for a, b in zip(forward, backward, strict=True)) <= 3


def test_a_chromosome_is_cut_without_a_copy_of_it() -> None:
    text = "ACGTTGCAAC" * 200_000
    tracemalloc.start()
    for tile in cut("x", text, Tiling(k=6, capacity=1000, overlap=100, strands="both")):
        assert 5980 <= len(tile.text) <= 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(text) / 5
