"""The table that a result is: which columns a row has, and how rows become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from cedilla.inference.pooling import Pooling, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Columns of a result: ``id``, for a token ``start0`` and ``token``, for a base ``pos0``, and
    for each layer ``layer_I``, a list of `width` numbers.

    layers: counted from 0, the embedding output. rows: how many the whole result has.
    """

    pooling: Pooling
    layers: tuple[int, ...]
    width: int
    dtype: Literal["float32", "float16"]
    rows: int

    @property
    def vectors(self) -> list[str]:
        """The columns that hold vectors, in the order that was asked for."""
        return [f"layer_{layer}" for layer in self.layers]

    @property
    def labels(self) -> dict[str, pa.DataType]:
        """The columns that say what a row is, the id first."""
        positions = {"token": {"start0": pa.int64(), "token": pa.string()}}
        positions["base"] = {"pos0": pa.int64()}
        return {"id": pa.string(), **positions.get(self.pooling, {})}

    @property
    def schema(self) -> pa.Schema:
        """All columns and their types."""
        number = pa.float32() if self.dtype == "float32" else pa.float16()
        vectors = {name: pa.list_(number, self.width) for name in self.vectors}
        return pa.schema(self.labels | vectors)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's vectors."""
        return len(self.layers) * self.width * np.dtype(self.dtype).itemsize

    def table(self, rows: Sequence[Rows]) -> pa.Table:
        """Rows of records as a table, which may be empty."""
        ids = np.array([row.id for row in rows], dtype=object)
        counts = [len(row.vectors) for row in rows]
        columns: list[pa.Array] = [pa.array(np.repeat(ids, counts), pa.string())]
        if len(self.labels) > 1:
            places = [row.start0 for row in rows if row.start0 is not None]
            columns.append(pa.array(np.concatenate([np.empty(0, np.int64), *places])))
        if "token" in self.labels:
            columns.append(pa.array([t for row in rows for t in row.tokens or ()], pa.string()))
        empty = np.empty((0, len(self.layers), self.width), self.dtype)
        with np.errstate(over="ignore"):  # whoever writes looks for infinities
            parts = [row.vectors.astype(self.dtype, copy=False) for row in rows]
        vectors = np.concatenate([empty, *parts])
        for i in range(len(self.layers)):
            flat = pa.array(np.ascontiguousarray(vectors[:, i]).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, self.width))
        return pa.Table.from_arrays(columns, schema=self.schema)


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """A column of vectors as an array (n, D)."""
    column = table.column(name).combine_chunks()
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size)
