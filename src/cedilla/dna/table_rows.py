"""Rows of CSV, TSV and Parquet as a stream of sequences, read piece by piece."""

from __future__ import annotations

import csv
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cedilla.dna.lines import numbered_lines
from cedilla.dna.records import Findings, Record
from cedilla.errors import InputError, Problem, stop_on_errors

ROWS_AT_ONCE = 256


def read_delimited(
    path: Path, findings: Findings, *, sequence: str, id: str | None
) -> Iterator[Record]:
    """The rows of a table between commas, tabs or semicolons, under a header.

    The ids are column `id`; if None, column ``id`` where there is one, else the line's number.
    """
    limit = csv.field_size_limit(sys.maxsize)  # its default refuses sequences above 131 kb
    try:
        yield from _rows(path, findings, sequence, id)
    finally:
        csv.field_size_limit(limit)


def _rows(path: Path, findings: Findings, sequence: str, id: str | None) -> Iterator[Record]:
    texts = _texts(path)
    line, first = next((n, text) for n, text in enumerate(texts, start=1) if text.strip())
    bare = re.sub(r'"[^"]*"', "", first)
    reader = csv.reader(
        _after(first, texts), delimiter=max("\t,;", key=bare.count), skipinitialspace=True,
        strict=True,
    )  # fmt: skip
    offset, start = line - 1, line
    try:
        header = [name.strip() for name in next(reader)]
        at, named = _columns(header, path, sequence, id)
        start = offset + reader.line_num + 1
        for fields in reader:
            where = f"{path} line {start}"
            number, start = start, offset + reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(header):
                what = f"has {len(fields)} fields where the header has {len(header)}"
                mend = "every row needs one field per column"
                findings.add("ragged", where=where, what=what, mend=mend)
                continue
            name = str(number) if named is None else fields[named].strip()
            yield Record(where=where, id=name, sequence=fields[at].strip())
    except csv.Error as error:
        where = f"{path} line {start}"
        mend = "check its quotation marks"
        raise InputError.one(where, f"cannot be parsed ({error})", mend) from None


def _texts(path: Path) -> Iterator[str]:
    for number, line in numbered_lines(path):
        try:
            yield line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            where = f"{path} line {number}"
            raise InputError.one(where, "is not UTF-8 text", "save the file as UTF-8") from None


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def read_parquet(
    path: Path, findings: Findings, *, sequence: str, id: str | None
) -> Iterator[Record]:
    """The rows of a Parquet file, of which two columns are read, some rows at a time."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            at, named = _columns(names, path, sequence, id)
            columns = [names[i] for i in (at, named) if i is not None]
            _refuse_other_types(file.schema_arrow.field(at), path)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                sequences = batch.column(names[at]).to_pylist()
                ids = [None] * len(sequences)
                if named is not None:
                    ids = batch.column(names[named]).to_pylist()
                for bases, name in zip(sequences, ids, strict=True):
                    number += 1
                    known = number if named is None else name
                    yield Record(
                        where=f"{path} row {number}",
                        id="" if known is None else str(known).strip(),
                        sequence=(bases or "").strip(),
                    )
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split(". ", 1)[0]
        where = f"{path} row {number + 1}"
        raise InputError.one(where, f"is damaged Parquet ({reason})", "copy it anew") from None


def _refuse_other_types(field: pa.Field, path: Path) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        what = f"column {field.name!r} holds {field.type}, not text"
        raise InputError.one(path, what, "name the column of sequences with --sequence")


def _columns(
    header: Sequence[str], path: Path, sequence: str, id: str | None
) -> tuple[int, int | None]:
    """Where the sequences stand, and the ids if they have a column."""
    if id is None and "id" in header:
        id = "id"
    problems = []
    for name in (sequence, id):
        if name is not None and header.count(name) != 1:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.4)
            # A file of bare sequences has a sequence where its header is looked for.
            some = ", ".join(column[:30] for column in header[:12])
            some = f"its columns: {some}" + (", …" if len(header) > 12 else "")
            mend = (f"did you mean {near[0]!r}? " if near else "") + some
            what = f"column {name!r} stands twice" if name in header else f"has no column {name!r}"
            problems.append(Problem(where=str(path), what=what, mend=mend))
    stop_on_errors(problems)
    return header.index(sequence), None if id is None else header.index(id)
