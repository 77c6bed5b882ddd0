"""Tables of sequences: CSV, TSV, Parquet and FASTA in, checked at the door, counted, never guessed.

A format is recognised by its content, so a misnamed file still opens. Everything that is wrong
with a table is reported at once, by file and record.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pysam

from cedilla.dna.alphabet import clean, count_ambiguous, first_forbidden
from cedilla.errors import InputError, Problem, stop_on_errors

LISTED = 5  # records named per kind of problem; the rest are counted
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTable:
    """Checked sequences, with their labels and columns, row by row in the file's order.

    ids: unique names of the rows; the record's number in the file where no column names it.
    sequences: upper case, of A, C, G, T and N only.
    labels: int64 (n,) from 0, or None where none were asked for.
    label_names: the names of classes 0, 1, … where the file spells its labels out.
    frame: the extra columns; its index is the record's number (``attrs["record"]`` says of what).
    notes: what was read but deserves a word, such as IUPAC codes that became N.
    """

    ids: list[str]
    sequences: list[str]
    labels: np.ndarray | None
    label_names: list[str] | None = None
    frame: pd.DataFrame
    path: Path
    notes: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def classes(self) -> int | list[str]:
        """The label names, or how many integer classes there are; for `read_sequences`."""
        if self.label_names is not None:
            return self.label_names
        return 0 if self.labels is None else int(self.labels.max()) + 1


def read_table(path: str | Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """Read a CSV, TSV (both also gzipped) or Parquet file with a header.

    The index is the line number for text (the header is line 1) and the row number from 1 for
    Parquet; ``attrs["record"]`` is ``"line"`` or ``"row"``. Columns named in `text` stay as
    written: ``NA`` is then a sequence of two bases, and ``007`` keeps its zeros.

    Raises :class:`InputError` for a file that is missing, empty, damaged, ragged or not UTF-8.
    """
    path = Path(path)
    if _first_bytes(path, 4) == _PARQUET:
        return _read_parquet(path)
    return _read_delimited(path, _decoded(path), text)


def read_sequences(
    path: str | Path,
    *,
    sequence: str = "sequence",
    label: str | None = "label",
    id: str | None = None,  # noqa: A002 (the flag that users type)
    extra: Sequence[str] = (),
    classes: int | Sequence[str] | None = None,
) -> SequenceTable:
    """Read and check sequences from a table or from FASTA.

    FASTA names are the ids, and words like ``label=1`` in a description are columns. Labels are
    integers from 0, or names, which are numbered in sorted order. `classes` is another table's
    :attr:`SequenceTable.classes` (that of the training set), which the labels must follow.

    Raises :class:`InputError` with every problem of the file: missing columns, forbidden
    characters (1-based position), empty sequences, labels that are missing or of one class only,
    ids that stand twice.
    """
    path = Path(path)
    if _starts_as_fasta(path):
        frame, sequence, id = _read_fasta(path), "sequence", "id"
    else:
        frame = read_table(path, text=[c for c in (sequence, id) if c])
    wanted = [c for c in (sequence, label, id, *extra) if c]
    stop_on_errors(_missing_columns(frame, wanted, path))

    cleaned, problems, notes = _check_sequences(frame, sequence, path)
    ids, id_problems = _check_ids(frame, id, path)
    problems += id_problems
    labels, names = None, None
    if label is not None:
        labels, names, label_problems = _check_labels(frame, label, classes, path)
        problems += label_problems
    stop_on_errors(problems)
    return SequenceTable(
        ids=ids,
        sequences=cleaned,
        labels=labels,
        label_names=names,
        frame=frame[list(extra)],
        path=path,
        notes=notes,
    )


def _first_bytes(path: Path, n: int) -> bytes:
    if not path.exists():
        folder = path.parent
        near = difflib.get_close_matches(
            path.name, [p.name for p in folder.iterdir()] if folder.is_dir() else [], n=1
        )
        raise InputError.one(
            path,
            "does not exist",
            f"did you mean {folder / near[0]}?" if near else "check the path",
        )
    if path.is_dir():
        raise InputError.one(path, "is a directory", "name a CSV, TSV, Parquet or FASTA file")
    try:
        with open(path, "rb") as file:
            head = file.read(n)
    except PermissionError:
        raise InputError.one(path, "cannot be read", "check its permissions") from None
    if not head:
        raise InputError.one(path, "is empty", "a header and at least one row are needed")
    return head


def _starts_as_fasta(path: Path) -> bool:
    if _first_bytes(path, 2) != _GZIP:
        return _first_bytes(path, 1) == b">"
    return _unzipped(path, limit=1) == b">"


def _unzipped(path: Path, *, limit: int | None = None) -> bytes:
    chunks: list[bytes] = []
    try:
        with gzip.open(path, "rb") as file:
            # read1 hands out all that could be decompressed before it meets the damage.
            while chunk := file.read1(limit or 1 << 16):
                chunks.append(chunk)
                if limit:
                    break
    except (EOFError, zlib.error, gzip.BadGzipFile):
        line = b"".join(chunks).count(b"\n") + 1
        raise InputError.one(
            f"{path} line {line}", "the gzip data are cut off or damaged", "copy the file anew"
        ) from None
    return b"".join(chunks)


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith(_GZIP):
        raw = _unzipped(path)
    for magic, name in _OTHER_FORMATS.items():
        if raw.startswith(magic):
            raise InputError.one(path, f"is {name}", "save it as CSV or TSV in UTF-8, or Parquet")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError.one(
            f"{path} line {line}", "is not UTF-8 text", "save the file as UTF-8"
        ) from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError.one(path, f"is damaged Parquet ({reason})", "copy it anew") from None
    if frame.empty:
        raise InputError.one(path, "has no rows", "at least one row is needed")
    named_index = any(name is not None for name in frame.index.names)
    frame = frame.reset_index(drop=not named_index)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    frame.attrs["record"] = "row"
    return frame


def _read_delimited(path: Path, text: str, verbatim: Collection[str]) -> pd.DataFrame:
    if not text.strip():
        raise InputError.one(path, "is empty", "a header and at least one row are needed")
    head = re.sub(r'"[^"]*"', "", text.lstrip("\n").split("\n", 1)[0])
    delimiter = max("\t,;", key=head.count)
    header, lines = _record_lines(path, text, delimiter)
    frame = pd.read_csv(
        io.StringIO(text),
        sep=delimiter,
        names=header,
        header=0,
        index_col=False,
        skipinitialspace=True,
        converters=dict.fromkeys(set(verbatim) & set(header), str),
        low_memory=False,  # a column's type must not depend on where a chunk ends
        float_precision="round_trip",
    )
    frame.index = pd.Index(lines)
    frame.attrs["record"] = "line"
    return frame


def _record_lines(path: Path, text: str, delimiter: str) -> tuple[list[str], list[int]]:
    """The header's names, and the line on which each record starts; ragged rows are refused."""
    limit = csv.field_size_limit(sys.maxsize)  # its default refuses sequences above 131 kb
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    starts: list[int] = []
    sizes: list[int] = []
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            if not row or (len(row) == 1 and row[0].isspace()):
                continue
            if not header:
                header = [name.strip() for name in row]
                continue
            starts.append(start)
            sizes.append(len(row))
    except csv.Error as error:
        raise InputError.one(
            f"{path} line {line}", f"cannot be parsed ({error})", "check its quotation marks"
        ) from None
    finally:
        csv.field_size_limit(limit)
    stop_on_errors(_check_shape(path, header, starts, sizes))
    return header, starts


def _check_shape(
    path: Path, header: list[str], starts: list[int], sizes: list[int]
) -> list[Problem]:
    twice = sorted({name for name in header if header.count(name) > 1})
    problems = [
        Problem(where=f"{path} line 1", what=f"column {name!r} stands twice", mend="rename one")
        for name in twice
    ]
    if not starts:
        problems.append(
            Problem(where=str(path), what="has a header but no rows", mend="at least one is needed")
        )
    ragged = [i for i, size in enumerate(sizes) if size != len(header)]
    mend = "every row needs one field per column"
    if ragged and all(sizes[i] == len(header) + 1 for i in range(len(sizes))):
        mend = "row names written by R? write with row.names = FALSE"
    return problems + listed(
        path,
        [f"line {starts[i]}" for i in ragged],
        lambda k: f"has {sizes[ragged[k]]} fields where the header has {len(header)}",
        mend,
    )


def _read_fasta(path: Path) -> pd.DataFrame:
    if _first_bytes(path, 2) == _GZIP:
        _unzipped(path)  # htslib reports damage without its place
    rows = []
    try:
        with pysam.FastxFile(str(path)) as file:
            for record in file:
                words = [word.split("=", 1) for word in (record.comment or "").split()]
                columns = {word[0]: word[1] for word in words if len(word) == 2}
                rows.append(columns | {"id": record.name or "", "sequence": record.sequence or ""})
    except (ValueError, UnicodeDecodeError):
        raise InputError.one(
            f"{path} record {len(rows) + 1}", "cannot be parsed as FASTA", "check that record"
        ) from None
    frame = pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1))
    frame.attrs["record"] = "record"
    return frame


def listed(
    path: Path, records: Sequence[str], what: Callable[[int], str], mend: str
) -> list[Problem]:
    """One problem for each of the first `LISTED` of `records`, and one that counts the rest."""
    problems = [
        Problem(where=f"{path} {record}", what=what(k), mend=mend)
        for k, record in enumerate(records[:LISTED])
    ]
    more = len(records) - LISTED
    if more > 0:
        again = "the same is wrong with"
        problems.append(
            Problem(where=str(path), what=f"{again} {more:,} more ({len(records):,} in all)")
        )
    return problems


def _records(frame: pd.DataFrame, chosen: np.ndarray) -> list[str]:
    return [f"{frame.attrs['record']} {number}" for number in frame.index[chosen]]


def _missing_columns(frame: pd.DataFrame, wanted: Sequence[str], path: Path) -> list[Problem]:
    columns = [str(c) for c in frame.columns]
    folded = {c.casefold(): c for c in columns}
    problems = []
    for name in dict.fromkeys(wanted):
        if name in frame.columns:
            continue
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.4)
        hint = f"did you mean {folded[near[0]]!r}? " if near else ""
        some = ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
        problems.append(
            Problem(
                where=str(path), what=f"has no column {name!r}", mend=f"{hint}its columns: {some}"
            )
        )
    return problems


def _check_sequences(
    frame: pd.DataFrame, column: str, path: Path
) -> tuple[list[str], list[Problem], list[Problem]]:
    raw = ["" if pd.isna(value) else str(value).strip() for value in frame[column]]
    empty = np.array([not value for value in raw])
    wrong = [first_forbidden(value) for value in raw]
    forbidden = np.flatnonzero([at is not None for at in wrong])

    def describe(k: int) -> str:
        row = forbidden[k]
        at = wrong[row] or 0
        return f"{raw[row][at]!r} at position {at + 1} of {column!r} is no nucleotide code"

    problems = listed(
        path, _records(frame, empty), lambda _: "the sequence is empty", "fill it or drop the row"
    )
    problems += listed(
        path, _records(frame, forbidden), describe, "use A, C, G, T, N or another IUPAC code"
    )
    return [clean(value) for value in raw], problems, _ambiguity(frame, raw, path)


def _ambiguity(frame: pd.DataFrame, raw: list[str], path: Path) -> list[Problem]:
    counts = np.array([count_ambiguous(value) for value in raw])
    if not counts.any():
        return []
    first = _records(frame, np.flatnonzero(counts))[0]
    what = (
        f"{counts.sum():,} IUPAC codes such as R or Y in {np.count_nonzero(counts):,} sequences"
        f" (the first in {first}) are read as N"
    )
    return [Problem(where=str(path), what=what, severity="warning")]


def _check_ids(
    frame: pd.DataFrame, column: str | None, path: Path
) -> tuple[list[str], list[Problem]]:
    if column is None:
        return [str(number) for number in frame.index], []
    ids = frame[column].fillna("").astype(str).str.strip()
    empty = (ids == "").to_numpy()
    twice = np.flatnonzero(ids.duplicated().to_numpy() & ~empty)
    values = ids.tolist()
    problems = listed(path, _records(frame, empty), lambda _: "the id is empty", "name the record")
    problems += listed(
        path,
        _records(frame, twice),
        lambda k: f"the id {values[twice[k]]!r} stands further up already",
        "make the ids unique",
    )
    return values, problems


def _check_labels(
    frame: pd.DataFrame, column: str, classes: int | Sequence[str] | None, path: Path
) -> tuple[np.ndarray, list[str] | None, list[Problem]]:
    values = frame[column]
    spelled = values.astype("string").str.strip().fillna("")
    numbers = pd.to_numeric(spelled if values.dtype != bool else values, errors="coerce")
    numbers = numbers.astype("float64").to_numpy(na_value=np.nan)
    missing = (spelled == "").to_numpy()
    names = None
    if isinstance(classes, int) or (classes is None and np.isfinite(numbers).any()):
        top = classes or np.inf
        wrong = ~(np.isfinite(numbers) & (numbers >= 0) & (numbers % 1 == 0) & (numbers < top))
        mend = f"use integers from 0 to {classes - 1}" if classes else "use integers from 0"
    else:
        names = sorted(set(spelled[~missing])) if classes is None else [str(c) for c in classes]
        numbers = pd.Categorical(spelled, categories=names).codes.astype("float64")
        wrong = numbers < 0
        mend = f"the classes are {', '.join(names)}"
    odd = np.flatnonzero(wrong & ~missing)
    problems = listed(
        path, _records(frame, missing), lambda _: "the label is missing", "fill it or drop the row"
    )
    problems += listed(
        path, _records(frame, odd), lambda k: f"label {spelled.iloc[odd[k]]!r} is not usable", mend
    )
    found = np.unique(numbers[~(wrong | missing)])
    if len(found) == 1 and not problems:
        only = spelled.iloc[0]
        problems = [
            Problem(
                where=str(path),
                what=f"column {column!r} has one class only ({only}, {len(frame):,} rows)",
                mend="at least two classes are needed to learn or to measure anything",
            )
        ]
    return np.where(wrong | missing, -1, numbers).astype(np.int64), names, problems
