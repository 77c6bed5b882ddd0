"""Labels of every kind from the columns of a table, and all that is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cedilla.dna.tables import _check_labels, _typed
from cedilla.errors import Problem
from cedilla.training.label_columns import Kind, LabelColumns, some

Labels = np.ndarray | list[np.ndarray]

UNLABELLED = "."  # a base without a label
_STRANGE = -2  # a character that names no class
_CLASS = re.compile(r"[0-9A-Za-z]")
_LEAVE_OUT = "leave it out of --label"


@dataclass(kw_only=True, slots=True)
class Read:
    """What was read: the outputs' names, each split's labels, and what is wrong with them."""

    names: tuple[str, ...] = ()
    labels: dict[str, Labels] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_classes(tables: Sequence[LabelColumns]) -> Read:
    """Class numbers (N,) int64 of each table, as the first one, that of training, names them."""
    column = str(tables[0].frame.columns[0])
    read = Read()
    classes: int | list[str] | None = None
    for table in tables:
        frame = table.frame.assign(**{column: _typed(table.texts.fillna(""))})
        labels, names, found = _check_labels(frame, column, classes, table.path)
        read.labels[table.split] = labels
        read.problems += found
        if table is tables[0]:
            read.problems += _check_gaps(table, labels)
            if not read.problems:
                classes = names or int(labels.max()) + 1
                read.names = tuple(names or map(str, range(int(labels.max()) + 1)))
    if not read.names:
        return read  # without the training classes there is nothing to compare with
    counts = [_counts(read.labels[table.split], read.names) for table in tables]
    for table in tables[1:]:
        wrong = np.isin(np.asarray(read.labels[table.split]), np.flatnonzero(counts[0] == 0))
        mend = "add such rows to the training table, or drop these"
        read.problems += table.refused(wrong[:, None], "{} {} is in no training row", mend)
    read.problems += _absent_classes(tables, counts, read.names)
    return read


def read_numbers(kind: Kind, tables: Sequence[LabelColumns]) -> Read:
    """Labels (N, T) float32 of each table, the first one that of training; NaN where missing."""
    read = Read(names=tuple(map(str, tables[0].frame.columns)))
    for table in tables:
        values, _ = table.numbers
        read.problems += _check_cells(kind, table)
        with np.errstate(over="ignore"):
            read.labels[table.split] = labels = values.astype(np.float32)
        known = np.isfinite(labels)
        read.problems += _check_columns(kind, table, labels, training=table is tables[0])
        read.problems += table.without_label(np.asarray(~known.any(axis=1)))
    return read


def read_bases(tables: Sequence[LabelColumns]) -> Read:
    """Classes (L_i,) int8 of every base, -1 without a label; the first table is that of training.

    Digits are class numbers. Of letters, the commonest one is class 0, the background; the others
    follow in sorted order.
    """
    read = Read(problems=[p for table in tables for p in table.typed_wrongly()])
    if read.problems:
        return read
    frequencies = _characters(tables[0])
    read.names = _base_classes(frequencies)
    code = np.full(256, _STRANGE, dtype=np.int8)
    code[ord(UNLABELLED)] = -1
    for name in frequencies:
        code[ord(name)] = read.names.index(name)
    counts = []
    for table in tables:
        labels, found = _bases(table, code)
        read.labels[table.split] = labels
        read.problems += found
        read.problems += table.without_label(np.array([(row < 0).all() for row in labels]))
        counts.append(_counts(labels, read.names))
    read.problems += _no_sites(tables, counts, read.names)
    read.problems += _absent_classes(tables, counts, read.names)
    return read


def _characters(table: LabelColumns) -> dict[str, int]:
    """How often each character that can name a class is the label of a base."""
    bases = "".join(table.texts.dropna()).encode("ascii", "replace")
    counts = np.bincount(np.frombuffer(bases, dtype=np.uint8), minlength=256)
    return {chr(k): int(counts[k]) for k in np.flatnonzero(counts) if _CLASS.match(chr(k))}


def _base_classes(frequencies: dict[str, int]) -> tuple[str, ...]:
    if "".join(frequencies).isdigit():
        return tuple(str(k) for k in range(int(max(frequencies)) + 1))
    common = max(sorted(frequencies), key=frequencies.__getitem__, default="0")
    return (common, *sorted(set(frequencies) - {common}))


def _bases(table: LabelColumns, code: np.ndarray) -> tuple[list[np.ndarray], list[Problem]]:
    labels: list[np.ndarray] = []
    longer: dict[int, str] = {}
    strange: dict[int, str] = {}
    for i, (text, length) in enumerate(zip(table.texts, table.lengths, strict=True)):
        if not isinstance(text, str):
            labels.append(np.full(length, -1, dtype=np.int8))
            continue
        row = code[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]
        if len(row) != length:
            longer[i] = f"has labels of {len(row):,} bases for {length:,}"
        elif (row == _STRANGE).any():
            at = int((row == _STRANGE).argmax())
            strange[i] = f"{text[at]!r} at base {at + 1:,} is no class of the training table"
        labels.append(row)
    problems = table.told(longer, "write one character a base")
    return labels, problems + table.told(strange, f"{UNLABELLED!r} is a base without a label")


def _check_cells(kind: Kind, table: LabelColumns) -> list[Problem]:
    """The rows with a value that a label of this kind cannot have."""
    values, unusable = table.numbers
    leave = "leave a missing label empty"
    problems = table.refused(unusable, "{} {!r} is no number", leave)
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    problems += table.refused(infinite, "{} {} is infinite", leave)
    known = ~np.isnan(values) & ~infinite
    if kind == "multilabel":
        mend = "write 1 for yes and 0 for no, or pass --target regression for numbers"
        problems += table.refused(
            known & ~np.isin(values, (0, 1)), "{} {} is neither 0 nor 1", mend
        )
    if kind == "fraction":
        outside = known & ((values < 0) | (values > 1))
        percent = not (values[outside] < 0).any() and not (values[outside] > 100).any()
        mend = "percent values? divide them by 100" if percent else "or pass --target regression"
        problems += table.refused(outside, "{} {} is outside [0, 1]", mend)
    return problems


def _check_columns(
    kind: Kind, table: LabelColumns, labels: np.ndarray, *, training: bool
) -> list[Problem]:
    """Columns of which nothing can be learnt, or nothing measured."""
    known = np.isfinite(labels)
    empty = ~known.any(axis=0)
    low = np.where(known, labels, np.inf).min(axis=0)
    flat = low >= np.where(known, labels, -np.inf).max(axis=0)
    problems = []
    if training and empty.any():
        problems.append(table.finding(f"{_columns(table, empty)}: no label at all", _LEAVE_OUT))
    constant = flat & ~empty if training else flat
    if constant.any():
        what = f"{_columns(table, constant)}: fewer than two different labels"
        # Among many yes-or-no columns, a rare one may well be constant in a sample.
        bearable = not flat.all() and (kind == "multilabel" or not training)
        mend = _LEAVE_OUT if training else "they are needed to measure anything"
        if bearable:
            mend = "nothing is learnt there" if training else "left out of means over columns"
        problems.append(table.finding(what, mend, "warning" if bearable else "error"))
    return problems


def _columns(table: LabelColumns, chosen: np.ndarray) -> str:
    names = [str(name) for name in table.frame.columns[chosen]]
    return f"column {names[0]!r}" if len(names) == 1 else f"{len(names):,} columns ({some(names)})"


def _counts(labels: Labels, names: Sequence[str]) -> np.ndarray:
    """How often each class (C,) is a label; -1 is none. Row by row, since bases can be many."""
    rows = [labels] if isinstance(labels, np.ndarray) else labels
    total = np.zeros(len(names), dtype=np.int64)
    for row in rows:
        total += np.bincount(row[row >= 0], minlength=len(names))
    return total


def _check_gaps(table: LabelColumns, labels: np.ndarray) -> list[Problem]:
    """Integers of which most numbers below the highest do not occur are hardly classes."""
    distinct = np.unique(labels[labels >= 0])
    top = int(distinct.max(initial=-1))
    if top < 2 * len(distinct):
        return []
    what = (
        f"column {table.frame.columns[0]!r} has {len(distinct):,} classes, numbered up to {top:,}"
    )
    mend = "number them from 0 without gaps, or pass --target regression for numbers"
    return [table.finding(what, mend)]


def _no_sites(
    tables: Sequence[LabelColumns], counts: Sequence[np.ndarray], names: Sequence[str]
) -> list[Problem]:
    """Tables without a base of any class but the background."""
    return [
        table.finding(
            f"column {table.frame.columns[0]!r} has no base of a class but {names[0]}",
            "others are needed to learn or to measure anything",
        )
        for table, here in zip(tables, counts, strict=True)
        if not here[1:].any()
    ]


def _absent_classes(
    tables: Sequence[LabelColumns], counts: Sequence[np.ndarray], names: Sequence[str]
) -> list[Problem]:
    """Warnings of classes that a table does not have; `counts` (C,) of each table."""
    problems = []
    for table, here in zip(tables, counts, strict=True):
        wanted = here == 0 if table is tables[0] else (here == 0) & (counts[0] > 0)
        absent = [names[int(k)] for k in np.flatnonzero(wanted)]
        if absent:
            what = f"no label is of class {some(absent)}"
            mend = "it cannot be learnt" if table is tables[0] else "it is left out of means"
            problems.append(table.finding(what, mend, "warning"))
    return problems
