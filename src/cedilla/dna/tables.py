"""Tables of sequences: CSV, TSV, Parquet and FASTA in, checked at the door, counted, never guessed.

A format is recognised by its content, so a misnamed file still opens. Everything that is wrong
with a table is reported at once, by file and record.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
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
_MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None")
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
        return self.label_names or (0 if self.labels is None else int(self.labels.max()) + 1)


def read_table(path: str | Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """Read a CSV, TSV (both also gzipped) or Parquet file with a header.

    The index is the line number for text (the header is line 1) and the row number from 1 for
    Parquet; ``attrs["record"]`` is ``"line"`` or ``"row"``. Columns named in `text` stay as
    written: ``NA`` is then a sequence of two bases, and ``007`` keeps its zeros.

    Raises :class:`InputError` for a file that is missing, empty, damaged, ragged or not UTF-8.
    """
    path = Path(path)
    return _parse_table(path, _content(path), text)


def read_sequences(
    path: str | Path,
    *,
    sequence: str = "sequence",
    label: str | None = "label",
    id: str | None = None,
    extra: Sequence[str] = (),
    verbatim: Sequence[str] = (),
    classes: int | Sequence[str] | None = None,
    collect: list[Problem] | None = None,
) -> SequenceTable:
    """Read and check sequences from a table or from FASTA.

    FASTA names are the ids, and words like ``label=1`` in a description are columns. Labels are
    integers from 0, or names, which are numbered in sorted order. `classes` is another table's
    :attr:`SequenceTable.classes` (that of the training set), which the labels must follow. Columns
    of a text file named in `verbatim` stay as written.

    Raises :class:`InputError` with every problem of the file: missing columns, forbidden
    characters (1-based position), empty sequences, labels that are missing or of one class only,
    ids that stand twice. With `collect`, problems of rows are appended to it instead, an unusable
    label is -1, and the frame has all columns: for a reader with more rules to report at once.
    """
    path = Path(path)
    content = _content(path)
    if content.startswith(b">"):
        frame, sequence, id = _parse_fasta(path), "sequence", "id"
    else:
        frame = _parse_table(path, content, [c for c in (sequence, id, *verbatim) if c])
    wanted = [c for c in (sequence, label, id, *extra) if c]
    stop_on_errors(_missing_columns(frame, wanted, path))
    bases, problems, notes = _check_sequences(frame, sequence, path)
    ids, found = _check_ids(frame, id, path)
    problems += found
    labels, names = None, None
    if label is not None:
        labels, names, found = _check_labels(frame, label, classes, path)
        problems += found
    if collect is None:
        stop_on_errors(problems)
        frame = frame[list(extra)]
    else:
        collect += problems
    table = SequenceTable(ids=ids, sequences=bases, labels=labels, frame=frame, path=path)
    return replace(table, label_names=names, notes=notes)


def _content(path: Path) -> bytes:
    """The bytes of the file, decompressed if they are gzip."""
    if not path.exists():
        names = [beside.name for beside in path.parent.glob("*")]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
        mend = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise InputError.one(path, "does not exist", mend)
    if path.is_dir():
        raise InputError.one(path, "is a directory", "name a CSV, TSV, Parquet or FASTA file")
    content = path.read_bytes()
    content = _unzipped(path) if content.startswith(_GZIP) else content
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise InputError.one(path, "is empty", "a header and at least one row are needed")
    return content


def _unzipped(path: Path) -> bytes:
    chunks: list[bytes] = []
    try:
        with gzip.open(path, "rb") as file:
            # read1 hands out all that could be decompressed before it meets the damage.
            while chunk := file.read1(1 << 16):
                chunks.append(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        line = b"".join(chunks).count(b"\n") + 1
        raise InputError.one(
            f"{path} line {line}", "the gzip data are cut off or damaged", "copy the file anew"
        ) from None
    return b"".join(chunks)


def _parse_table(path: Path, content: bytes, text: Collection[str]) -> pd.DataFrame:
    if content.startswith(_PARQUET):
        return _parse_parquet(path, content)
    for magic, name in _OTHER_FORMATS.items():
        if content.startswith(magic):
            raise InputError.one(path, f"is {name}", "save it as CSV or TSV in UTF-8, or Parquet")
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError.one(
            f"{path} line {line}", "is not UTF-8 text", "save the file as UTF-8"
        ) from None
    return _parse_delimited(path, decoded.replace("\r\n", "\n").replace("\r", "\n"), text)


def _parse_parquet(path: Path, content: bytes) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split(". ", 1)[0]
        raise InputError.one(path, f"is damaged Parquet ({reason})", "copy it anew") from None
    if frame.empty:
        raise InputError.one(path, "has no rows", "at least one row is needed")
    frame = frame.reset_index(drop=set(frame.index.names) == {None})
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    frame.attrs["record"] = "row"
    return frame


def _parse_delimited(path: Path, text: str, verbatim: Collection[str]) -> pd.DataFrame:
    head = re.sub(r'"[^"]*"', "", text.lstrip("\n").split("\n", 1)[0])
    header, rows, lines = _split(path, text, max("\t,;", key=head.count))
    columns = {
        name: pd.Series(values) if name in verbatim else _typed(pd.Series(values, dtype="str"))
        for name, values in zip(header, zip(*rows, strict=True), strict=True)
    }
    frame = pd.DataFrame(columns).set_axis(pd.Index(lines))
    frame.attrs["record"] = "line"
    return frame


def _split(path: Path, text: str, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The header's names, the rows' fields, and the line on which each row starts."""
    limit = csv.field_size_limit(sys.maxsize)  # its default refuses sequences above 131 kb
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError.one(
            f"{path} line {line}", f"cannot be parsed ({error})", "check its quotation marks"
        ) from None
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in rows.pop(0)]
    stop_on_errors(_check_shape(path, header, lines.pop(0), [len(row) for row in rows], lines))
    return header, rows, lines


def _typed(values: pd.Series) -> pd.Series:
    """Text as integers, floats or booleans where all of it is; missing values as NaN."""
    present = ~values.isin(_MISSING)
    numbers = pd.to_numeric(values.where(present), errors="coerce")
    if bool((numbers.notna() | ~present).all()):
        return numbers
    if bool(values.str.casefold().isin(["true", "false"]).all()):
        return values.str.casefold() == "true"
    return values.where(present)


def _check_shape(
    path: Path, header: list[str], header_line: int, sizes: list[int], lines: list[int]
) -> list[Problem]:
    where = f"{path} line {header_line}"
    problems = [
        Problem(where=where, what=f"column {name!r} stands twice", mend="rename one")
        for name in sorted({name for name in header if header.count(name) > 1})
    ]
    if not sizes:
        what, mend = "is a header without rows", "at least one row is needed"
        problems.append(Problem(where=where, what=what, mend=mend))
    ragged = [i for i, size in enumerate(sizes) if size != len(header)]
    mend = "every row needs one field per column"
    if ragged and set(sizes) == {len(header) + 1}:
        mend = "row names written by R? write with row.names = FALSE"
    return problems + listed(
        path,
        [f"line {lines[i]}" for i in ragged],
        lambda k: f"has {sizes[ragged[k]]} fields where the header has {len(header)}",
        mend,
    )


def _parse_fasta(path: Path) -> pd.DataFrame:
    rows = []
    try:
        with pysam.FastxFile(str(path)) as file:
            for record in file:
                words = (record.comment or "").split()
                columns = dict(word.split("=", 1) for word in words if "=" in word)
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
    if len(records) > LISTED:
        rest = f"the same holds for {len(records) - LISTED:,} more ({len(records):,} in all)"
        problems.append(Problem(where=str(path), what=rest))
    return problems


def _stripped(values: pd.Series) -> pd.Series:
    return values.astype("string").str.strip().fillna("")


def _records(frame: pd.DataFrame, chosen: np.ndarray) -> list[str]:
    return [f"{frame.attrs['record']} {number}" for number in frame.index[chosen]]


def _missing_columns(frame: pd.DataFrame, wanted: Sequence[str], path: Path) -> list[Problem]:
    columns = [str(c) for c in frame.columns]
    folded = {c.casefold(): c for c in columns}
    some = "its columns: " + ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "")
    problems = []
    for name in dict.fromkeys(wanted):
        if name not in columns:
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.4)
            mend = f"did you mean {folded[near[0]]!r}? {some}" if near else some
            what = f"has no column {name!r}"
            problems.append(Problem(where=str(path), what=what, mend=mend))
    return problems


def _check_sequences(
    frame: pd.DataFrame, column: str, path: Path
) -> tuple[list[str], list[Problem], list[Problem]]:
    raw = _stripped(frame[column]).tolist()
    empty = np.array([not value for value in raw])
    first = [first_forbidden(value) for value in raw]
    found = [(value[at], at + 1) for value, at in zip(raw, first, strict=True) if at is not None]
    problems = listed(
        path, _records(frame, empty), lambda _: "the sequence is empty", "fill it or drop the row"
    )
    problems += listed(
        path,
        _records(frame, np.array([at is not None for at in first])),
        lambda k: "{!r} at position {} is no nucleotide code".format(*found[k]),
        "use A, C, G, T, N or another IUPAC code",
    )
    return [clean(value) for value in raw], problems, _ambiguity(frame, raw, path)


def _ambiguity(frame: pd.DataFrame, raw: list[str], path: Path) -> list[Problem]:
    counts = np.array([count_ambiguous(value) for value in raw])
    if not counts.any():
        return []
    first = _records(frame, np.flatnonzero(counts))[0]
    total = f"{counts.sum():,} IUPAC codes such as R or Y in {np.count_nonzero(counts):,} sequences"
    what = f"{total} (the first in {first}) are read as N"
    return [Problem(where=str(path), what=what, severity="warning")]


def _check_ids(
    frame: pd.DataFrame, column: str | None, path: Path
) -> tuple[list[str], list[Problem]]:
    if column is None:
        return [str(number) for number in frame.index], []
    ids = _stripped(frame[column])
    empty = (ids == "").to_numpy(dtype=bool)
    twice = ids.duplicated().to_numpy() & ~empty
    again = ids[twice].tolist()
    problems = listed(path, _records(frame, empty), lambda _: "the id is empty", "name the record")
    problems += listed(
        path,
        _records(frame, twice),
        lambda k: f"the id {again[k]!r} stands further up already",
        "make the ids unique",
    )
    return ids.tolist(), problems


def _check_labels(
    frame: pd.DataFrame, column: str, classes: int | Sequence[str] | None, path: Path
) -> tuple[np.ndarray, list[str] | None, list[Problem]]:
    spelled = _stripped(frame[column])
    missing = (spelled == "").to_numpy(dtype=bool)
    labels, names = _numbered(spelled, classes)
    wrong = (labels < 0) & ~missing
    unusable = spelled[wrong].tolist()
    top = f" to {classes - 1}" if isinstance(classes, int) else ""
    mend = f"the classes are {', '.join(names)}" if names else f"use integers from 0{top}"
    problems = listed(
        path, _records(frame, missing), lambda _: "the label is missing", "fill it or drop the row"
    )
    problems += listed(
        path, _records(frame, wrong), lambda k: f"label {unusable[k]!r} is not usable", mend
    )
    if not unusable and len(set(spelled[~missing])) == 1:
        what = f"column {column!r} has one class only ({spelled[~missing].iloc[0]})"
        mend = "at least two classes are needed to learn or to measure anything"
        problems.append(Problem(where=str(path), what=what, mend=mend))
    return labels, names, problems


def _numbered(
    spelled: pd.Series, classes: int | Sequence[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers, -1 where a label is none, and the names if labels are names."""
    integers = pd.to_numeric(spelled.replace({"True": "1", "False": "0"}), errors="coerce")
    numbers = integers.to_numpy(dtype=np.float64, na_value=np.nan)
    # One number among the labels is enough: a column of integers with a slip is no set of names.
    if isinstance(classes, int) or (classes is None and np.isfinite(numbers).any()):
        top = classes or np.iinfo(np.int64).max
        usable = np.isfinite(numbers) & (numbers >= 0) & (numbers % 1 == 0) & (numbers < top)
        return np.where(usable, numbers, -1).astype(np.int64), None
    names = sorted(set(spelled) - {""}) if classes is None else [str(c) for c in classes]
    number = {name: k for k, name in enumerate(names)}
    return np.array([number.get(name, -1) for name in spelled], dtype=np.int64), names
