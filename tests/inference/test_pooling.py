"""Pooling: each tile's part by itself, combined in order, carried from process to process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import CLS, Tokenizer
from cedilla.inference.pooling import Pooler, Pooling, Rows, pooler
from cedilla.inference.tiles import Strands, Tile, Tiling, cut

TOKENIZER = Tokenizer(3)
LAYERS, D = 2, 4


def states_of(ids: np.ndarray, start0: int) -> torch.Tensor:
    """Made-up states (LAYERS, 1 + L, D), which depend on token and place."""
    rng = np.random.default_rng(7)
    table = rng.normal(size=(LAYERS, len(TOKENIZER), D))
    place = np.arange(len(ids))[None, :, None] + start0 / 3
    return torch.from_numpy((table[:, ids] + np.sin(place)).astype(np.float32))


def parts_of(pool: Pooler, tiles: Iterable[Tile]) -> list[tuple[Tile, object]]:
    tiles = list(tiles)
    ids = TOKENIZER.encode_ragged([tile.text for tile in tiles])
    assert all(row[0] == CLS for row in ids)
    return [
        (tile, pool.reduce(tile, row, states_of(row, tile.start0)))
        for tile, row in zip(tiles, ids, strict=True)
    ]


def rows_of(pool: Pooler, tiles: Iterable[Tile]) -> list[Rows]:
    combined = (pool.combine(tile, part) for tile, part in parts_of(pool, tiles))
    return [row for row in combined if row is not None]


def make(pooling: Pooling, strands: Strands = "forward", *, skip_n: bool = False) -> Pooler:
    return pooler(pooling, TOKENIZER, skip_n=skip_n, strands=strands)


def one_tile(text: str) -> tuple[list[Tile], np.ndarray, np.ndarray]:
    tiles = list(cut("x", text, Tiling(k=3, capacity=100, overlap=0)))
    (ids,) = TOKENIZER.encode_ragged([text])
    return tiles, ids, states_of(ids, 0).double().numpy()


@pytest.mark.parametrize("skip_n", [False, True])
def test_mean_max_and_cls_of_one_tile(skip_n: bool) -> None:
    tiles, ids, states = one_tile("ACGTNNACGAC")
    known = np.ones(len(ids), dtype=bool)
    if skip_n:
        known = ids != TOKENIZER.vocabulary.index("N")
    known[0] = False
    expected = {"mean": states[:, known].mean(1), "max": states[:, known].max(1)}
    expected["cls"] = states[:, 0]
    for pooling, vectors in expected.items():
        (row,) = rows_of(make(pooling, skip_n=skip_n), tiles)
        assert row.id == "x"
        assert row.vectors.shape == (1, LAYERS, D)
        assert row.vectors.dtype == np.float32
        assert np.allclose(row.vectors[0], vectors, atol=1e-6)


def test_a_tile_of_n_alone_adds_nothing() -> None:
    text = "ACGACG" + "N" * 40 + "ACG"
    tiles = list(cut("x", text, Tiling(k=3, capacity=10, overlap=0)))
    assert any(set(tile.text) == {"N"} for tile in tiles)
    for pooling in ("mean", "max"):
        (row,) = rows_of(make(pooling, skip_n=True), tiles)
        assert np.isfinite(row.vectors).all()


def test_each_token_has_a_row_with_its_place() -> None:
    tiles, _, states = one_tile("ACGTNNACGAC")
    (row,) = rows_of(make("token"), tiles)
    assert row.tokens == ["ACG", "T", "N", "N", "ACG", "A", "C"]
    assert row.start0 is not None
    assert row.start0.tolist() == [0, 3, 4, 5, 6, 9, 10]
    assert np.allclose(row.vectors, states[:, 1:].swapaxes(0, 1))


def test_each_base_has_the_vector_of_its_token() -> None:
    tiles, _, states = one_tile("ACGTNACGAC")
    (row,) = rows_of(make("base"), tiles)
    token = [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]
    assert np.allclose(row.vectors, states[:, 1:][:, token].swapaxes(0, 1))
    assert row.start0 is not None
    assert row.start0.tolist() == list(range(10))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "base"])
@pytest.mark.parametrize("length", [20, 300])
def test_both_strands_are_the_mean_of_either(
    pooling: Pooling, length: int, dna: Callable[..., str]
) -> None:
    text = dna(length, 3, n=5)
    tilings = [Tiling(k=3, capacity=20, overlap=6, strands=s) for s in ("both", "forward")]
    both, forward, backward = (
        np.concatenate([row.vectors for row in rows_of(make(pooling, t.strands), cut("x", b, t))])
        for b, t in (
            (text, tilings[0]),
            (text, tilings[1]),
            (reverse_complement(text), tilings[1]),
        )
    )
    assert len(both) == (length if pooling == "base" else 1)
    assert np.allclose(both, (forward + backward[::-1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "strands"),
    [("mean", "both"), ("max", "forward"), ("cls", "both"), ("token", "forward"), ("base", "both")],
)
def test_another_process_can_go_on_after_any_tile(
    pooling: Pooling, strands: Strands, dna: Callable[..., str]
) -> None:
    tiling = Tiling(k=3, capacity=20, overlap=6, strands=strands)
    tiles = [t for seed in range(3) for t in cut(str(seed), dna(150 * seed + 9, seed), tiling)]
    whole = rows_of(make(pooling, strands), tiles)
    pool, resumed = make(pooling, strands), []
    for tile, part in parts_of(pool, tiles):
        carry = pool.carry()
        pool = make(pooling, strands)
        pool.restore(carry)
        row = pool.combine(tile, part)
        resumed += [row] if row is not None else []
    assert [row.id for row in resumed] == [row.id for row in whole]
    for a, b in zip(resumed, whole, strict=True):
        assert a.vectors.tobytes() == b.vectors.tobytes()
        assert np.array_equal(a.start0, b.start0)  # type: ignore[arg-type]
        assert a.tokens == b.tokens
