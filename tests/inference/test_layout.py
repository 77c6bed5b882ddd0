"""The table of a result: columns by pooling, vectors of one width, either type of number."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cedilla.inference.layout import Layout, matrix
from cedilla.inference.pooling import Rows


def layout(pooling: str, dtype: str = "float32") -> Layout:
    return Layout(pooling=pooling, layers=(5, 2), width=3, dtype=dtype, rows=4)


def vectors(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_row_a_sequence(dtype: str) -> None:
    found = layout("max", dtype)
    rows = [Rows(id=str(i), vectors=vectors(1)) for i in range(4)]
    table = found.table(rows)
    assert table.schema == found.schema
    assert table.column_names == ["id", "layer_5", "layer_2"]
    assert table.column("layer_5").type == pa.list_(
        pa.float32() if dtype == "float32" else pa.float16(), 3
    )
    expected = np.concatenate([row.vectors for row in rows])[:, 1].astype(dtype)
    assert np.array_equal(matrix(table, "layer_2"), expected)
    assert np.array_equal(matrix(table.slice(1, 2), "layer_2"), expected[1:3])
    assert found.row_bytes == 2 * 3 * (4 if dtype == "float32" else 2)


def test_a_row_a_token_or_a_base() -> None:
    tokens = Rows(id="a", vectors=vectors(3), start0=np.arange(3) * 6, tokens=["A", "C", "G"])
    table = layout("token").table([tokens, tokens])
    assert table.column_names == ["id", "start0", "token", "layer_5", "layer_2"]
    assert table.to_pydict()["start0"] == [0, 6, 12, 0, 6, 12]
    assert table.to_pydict()["token"] == ["A", "C", "G"] * 2
    assert table.to_pydict()["id"] == ["a"] * 6
    bases = Rows(id="b", vectors=vectors(2), start0=np.arange(7, 9))
    table = layout("base").table([bases])
    assert table.column_names == ["id", "pos0", "layer_5", "layer_2"]
    assert table.to_pydict()["pos0"] == [7, 8]


@pytest.mark.parametrize("pooling", ["mean", "token", "base"])
def test_no_rows_are_a_table_too(pooling: str) -> None:
    assert layout(pooling).table([]) == layout(pooling).schema.empty_table()
