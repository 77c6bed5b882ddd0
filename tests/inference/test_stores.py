"""Stores: the same numbers and names in every format, block by block, byte for byte the same."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cedilla.errors import InputError, MissingData
from cedilla.inference import stores
from cedilla.inference.layout import Layout, matrix
from cedilla.inference.pooling import Rows
from cedilla.inference.stores import STORES, blocks, facts_in, store_of

FACTS = {"input": "é.fa", "settings": {"layers": [5, 2]}}
N = 11


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, 2, 3)).astype(np.float32)


@pytest.fixture(params=["mean", "token", "base"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(stores, "BLOCK_BYTES", 4 * 2 * 3 * 4)  # four rows
    return Layout(pooling=request.param, layers=(5, 2), width=3, dtype="float32", rows=N)


def tables(layout: Layout) -> Iterator[pa.Table]:
    """Rows in uneven pieces, one of them empty."""
    values, start = vectors(), 0
    for number, size in enumerate((1, 5, 0, 2, 3)):
        rows = values[start : start + size]
        places = None if layout.pooling == "mean" else np.arange(start, start + size)
        tokens = ["ACG"] * size if layout.pooling == "token" else None
        found = Rows(id=f"é{number}", vectors=rows, start0=places, tokens=tokens)
        yield layout.table([found])
        start += size


def ids() -> list[str]:
    return ["é0", *["é1"] * 5, *["é3"] * 2, *["é4"] * 3]


def written(layout: Layout, path: Path) -> Path:
    for module in store_of(path).needs:
        pytest.importorskip(module)
    store_of(path).write(path, tables(layout), layout, FACTS)
    assert facts_in(path) == FACTS
    return path


def test_blocks_are_of_one_size(layout: Layout) -> None:
    found = list(blocks(tables(layout), layout))
    assert [len(table) for table in found] == [4, 4, 3]
    assert pa.concat_tables(found) == pa.concat_tables(tables(layout))


def test_parquet(layout: Layout, tmp_path: Path) -> None:
    path = written(layout, tmp_path / "x.parquet")
    table = pq.read_table(path)
    assert table.column_names == layout.schema.names
    assert table.column("id").to_pylist() == ids()
    assert np.array_equal(matrix(table, "layer_2"), vectors()[:, 1])
    frame = pd.read_parquet(path)
    assert np.array_equal(np.stack(frame["layer_5"].tolist()), vectors()[:, 0])


def test_npy(layout: Layout, tmp_path: Path) -> None:
    path = written(layout, tmp_path / "x.npy")
    assert np.array_equal(np.load(path), vectors())
    rows = pd.read_csv(tmp_path / "x.rows.csv")
    assert rows.columns.tolist() == list(layout.labels)
    assert rows["id"].tolist() == ids()
    assert set(STORES[".npy"].beside) == {".rows.csv", ".facts.json"}


def test_npy_of_one_layer_is_a_matrix(tmp_path: Path) -> None:
    one = Layout(pooling="mean", layers=(2,), width=3, dtype="float16", rows=2)
    rows = [Rows(id=i, vectors=vectors()[:1, :1]) for i in "ab"]
    store_of(tmp_path / "x.npy").write(tmp_path / "x.npy", iter([one.table(rows)]), one, FACTS)
    loaded = np.load(tmp_path / "x.npy")
    assert loaded.shape == (2, 3)
    assert loaded.dtype == np.float16


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_anndata(layout: Layout, tmp_path: Path, suffix: str) -> None:
    path = written(layout, tmp_path / f"x{suffix}")
    pytest.importorskip("anndata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AnnData warns of the pandas that it was not made for
        anndata = importlib.import_module("anndata")
        read = anndata.read_zarr if suffix == ".zarr" else anndata.read_h5ad
        data = read(path)
        places = [f"{i}:{n}" for n, i in enumerate(ids())]
        assert data.obs_names.tolist() == (ids() if layout.pooling == "mean" else places)
        assert data.obs.columns.tolist() == (
            [] if layout.pooling == "mean" else list(layout.labels)
        )
        if layout.pooling == "token":
            assert data.obs["start0"].tolist() == list(range(N))
            assert data.obs["token"].tolist() == ["ACG"] * N
        assert data.var_names.tolist() == ["0", "1", "2"]
        assert np.array_equal(data.X, vectors()[:, 0])
        assert np.array_equal(data.obsm["layer_2"], vectors()[:, 1])
        assert data.uns["X"] == "layer_5"
        assert json.loads(str(data.uns["cedilla"])) == FACTS


def content(path: Path) -> dict[str, bytes]:
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("suffix", STORES)
def test_the_same_rows_give_the_same_bytes(layout: Layout, tmp_path: Path, suffix: str) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = written(layout, tmp_path / name / f"x{suffix}")
        store_of(path).write(path, tables(layout), layout, FACTS)  # over what stands there
        found.append(content(tmp_path / name))
    assert found[0] == found[1]


def test_other_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"x.csv: has no format .* end its name in .parquet, .za"):
        store_of(Path("x.csv"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingData, match=r"needs zarr; pip install 'cedilla\[anndata\]'"):
        store_of(Path("x.zarr"))
    store_of(Path("x.parquet"))


@pytest.mark.parametrize("make", [Path.touch, lambda p: pd.DataFrame({"a": [1]}).to_parquet(p)])
def test_a_file_of_something_else_is_no_result(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="exists, and is no result of this verb"):
        facts_in(tmp_path / "x.parquet")
