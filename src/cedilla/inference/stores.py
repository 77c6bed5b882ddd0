"""Results on disk: one table, written block by block as Parquet, AnnData (zarr, h5ad) or npy."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cedilla.errors import InputError, MissingData
from cedilla.files import whole_file, write_json
from cedilla.inference.layout import Layout, matrix

BLOCK_BYTES = 32 << 20
_KEY = "cedilla"
_ROWS, _FACTS = ".rows.csv", ".facts.json"


@dataclass(frozen=True, slots=True)
class Store:
    """A format: how it is written to a path, and how its facts are read again.

    needs: libraries. beside: suffixes of the further files that come with the path.
    """

    write: Callable[[Path, Iterator[pa.Table], Layout, Mapping[str, Any]], None]
    read_facts: Callable[[Path], Any]
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def store_of(out: Path) -> Store:
    """The format that a file's name asks for, with the libraries that it needs installed."""
    store = STORES.get(out.suffix)
    if store is None:
        mend = "end its name in " + ", ".join(STORES)
        raise InputError.one(out, "has no format that can be written", mend)
    missing = [name for name in store.needs if importlib.util.find_spec(name) is None]
    if missing:
        mend = "pip install 'cedilla[anndata]'"
        raise MissingData.one(out, f"needs {', '.join(missing)}", mend)
    return store


def blocks(tables: Iterable[pa.Table], layout: Layout) -> Iterator[pa.Table]:
    """The same rows in blocks of one size, whatever the sizes of `tables`; the last is shorter."""
    rows = max(1, BLOCK_BYTES // layout.row_bytes)
    held = layout.schema.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while len(held) >= rows:
            yield held.slice(0, rows).combine_chunks()
            held = held.slice(rows)
    if len(held):
        yield held.combine_chunks()


def facts_in(out: Path) -> dict[str, Any]:
    """The facts that a result carries; raises :class:`InputError` where there are none."""
    try:
        return dict(json.loads(store_of(out).read_facts(out)))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        mend = "choose another --out, or delete it"
        raise InputError.one(out, "exists, and is no result of this verb", mend) from None


def _write_parquet(
    path: Path, tables: Iterator[pa.Table], layout: Layout, facts: Mapping[str, Any]
) -> None:
    schema = layout.schema.with_metadata({_KEY: json.dumps(facts)})
    names = list(layout.labels)
    with (
        whole_file(path) as draft,
        pq.ParquetWriter(draft, schema, use_dictionary=names, write_statistics=names) as writer,
    ):
        for table in blocks(tables, layout):
            writer.write_table(table.cast(schema))


def _parquet_facts(path: Path) -> bytes:
    metadata: dict[bytes, bytes] = pq.read_schema(path).metadata
    return metadata[_KEY.encode()]


def _write_npy(
    path: Path, tables: Iterator[pa.Table], layout: Layout, facts: Mapping[str, Any]
) -> None:
    """(rows, D), or (rows, layers, D) for several layers; beside it what the rows are."""
    shape: tuple[int, ...] = (layout.rows, len(layout.layers), layout.width)
    if len(layout.layers) == 1:
        shape = (layout.rows, layout.width)
    header = {"descr": np.dtype(layout.dtype).str, "fortran_order": False, "shape": shape}
    labels = list(layout.labels)
    with (
        whole_file(path) as draft,
        whole_file(path.with_suffix(_ROWS)) as rows_draft,
        open(draft, "wb") as file,
        open(rows_draft, "w", encoding="utf-8", newline="") as text,
    ):
        np.lib.format.write_array_header_2_0(file, header)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(labels)
        for table in blocks(tables, layout):
            file.write(np.stack([matrix(table, n) for n in layout.vectors], axis=1).tobytes())
            writer.writerows(zip(*(table.column(n).to_pylist() for n in labels), strict=True))
    write_json(path.with_suffix(_FACTS), facts)


def _write_h5ad(
    path: Path, tables: Iterator[pa.Table], layout: Layout, facts: Mapping[str, Any]
) -> None:
    import h5py

    with whole_file(path) as draft, h5py.File(draft, "w") as root:
        _write_anndata(root, h5py.string_dtype(), tables, layout, facts)


def _write_zarr(
    path: Path, tables: Iterator[pa.Table], layout: Layout, facts: Mapping[str, Any]
) -> None:
    import zarr

    shutil.rmtree(path, ignore_errors=True)  # a killed process may have left half of it
    _write_anndata(zarr.open_group(path, mode="w"), str, tables, layout, facts)


def _write_anndata(
    root: Any, text: Any, tables: Iterator[pa.Table], layout: Layout, facts: Mapping[str, Any]
) -> None:
    """AnnData's layout on disk, whose groups h5py and zarr give alike: X is the first layer.

    `text` is the type of strings. Written as the layout's description has it, since AnnData's
    own writer takes whole arrays. Source:
    https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """
    groups = {name: root.create_group(name) for name in ("obs", "var", "obsm", "uns")}
    # Names of rows are unique in AnnData; those of tokens and bases end in their place.
    columns = list(layout.labels) if len(layout.labels) > 1 else []
    _tag(root, "anndata", "0.1.0")
    _tag(groups["obs"], "dataframe", "0.2.0", _index="_index", **{"column-order": columns})
    _tag(groups["var"], "dataframe", "0.2.0", _index="_index", **{"column-order": []})
    _tag(groups["obsm"], "dict", "0.1.0")
    _tag(groups["uns"], "dict", "0.1.0")
    array = _ArrayMaker(text, max(1, min(layout.rows, BLOCK_BYTES // layout.row_bytes)))
    for name, value in {_KEY: json.dumps(facts), "X": layout.vectors[0]}.items():
        array.make(groups["uns"], name, (), str)[...] = np.array(value, dtype=object)
    array.make(groups["var"], "_index", (layout.width,), str)[:] = np.array(
        [str(i) for i in range(layout.width)], dtype=object
    )
    names = array.make(groups["obs"], "_index", (layout.rows,), str)
    labels = {
        name: array.make(groups["obs"], name, (layout.rows,), kind)
        for name, kind in layout.labels.items()
        if columns
    }
    shape = (layout.rows, layout.width)
    vectors = {
        name: array.make(*((groups["obsm"], name) if i else (root, "X")), shape, layout.dtype)
        for i, name in enumerate(layout.vectors)
    }
    done = 0
    for table in blocks(tables, layout):
        to = slice(done, done := done + len(table))
        names[to] = _unique_names(table, columns)
        for name, target in labels.items():
            target[to] = table.column(name).to_numpy()
        for name, target in vectors.items():
            target[to] = matrix(table, name)


def _unique_names(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    ids: np.ndarray = table.column("id").to_numpy()
    if not columns:
        return ids
    places = table.column(columns[1]).to_pylist()
    return np.array([f"{i}:{p}" for i, p in zip(ids, places, strict=True)], dtype=object)


def _tag(node: Any, kind: str, version: str, **more: Any) -> None:
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **more})


@dataclass(frozen=True, slots=True)
class _ArrayMaker:
    """Makes the arrays of an AnnData file, in chunks of so many rows."""

    text: Any
    rows: int

    def make(self, group: Any, name: str, shape: tuple[int, ...], kind: Any) -> Any:
        is_text = kind is str or kind == pa.string()
        make = group.create_array if hasattr(group, "create_array") else group.create_dataset
        more = {"chunks": (min(self.rows, shape[0]), *shape[1:])} if shape else {}
        made = make(name, shape=shape, dtype=self.text if is_text else str(kind), **more)
        tag = "array" if not is_text else "string-array" if shape else "string"
        _tag(made, tag, "0.2.0")
        return made


def _h5ad_facts(path: Path) -> Any:
    import h5py

    with h5py.File(path) as root:
        return root["uns"][_KEY][()]


def _zarr_facts(path: Path) -> str:
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    return str(group["uns"][_KEY][()])


STORES = {
    ".parquet": Store(_write_parquet, _parquet_facts),
    ".zarr": Store(_write_zarr, _zarr_facts, ("zarr",)),
    ".h5ad": Store(_write_h5ad, _h5ad_facts, ("h5py",)),
    ".npy": Store(
        _write_npy,
        lambda path: path.with_suffix(_FACTS).read_text(encoding="utf-8"),
        beside=(_ROWS, _FACTS),
    ),
}
