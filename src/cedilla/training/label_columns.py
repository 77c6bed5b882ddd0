"""The label columns of a table: which they are, what they hold, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cedilla.dna.tables import (
    _MISSING,
    LISTED,
    _missing_columns,
    _records,
    _stripped,
    listed,
)
from cedilla.errors import Problem, Severity, stop_on_errors

Kind = Literal["classes", "multilabel", "regression", "fraction", "per_base"]

_SHORTEST = 6  # bases; shorter labels may match their sequence by chance


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """The label columns of one split.

    frame: as :mod:`cedilla.dna.tables` reads them, typed or as written; its index is the record's
    number (``attrs["record"]`` says of what). lengths: (N,), of the sequences.
    """

    split: str
    frame: pd.DataFrame
    path: Path
    lengths: np.ndarray

    @cached_property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Values (N, T) float64, NaN where there are none, and which cells hold no number."""
        columns = [_numbers(self.frame[name]) for name in self.frame]
        values, unusable = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        return values, unusable

    @cached_property
    def texts(self) -> pd.Series:
        """The only column as text, NaN where a label is missing."""
        spelled = _stripped(self.frame.iloc[:, 0]).astype("str")
        return spelled.where(~spelled.isin(_MISSING))

    @property
    def as_written(self) -> bool:
        """Whether the only column is text, and not numbers without their leading zeros."""
        return not pd.api.types.is_numeric_dtype(self.frame.iloc[:, 0])

    def typed_wrongly(self) -> list[Problem]:
        """A problem where the only column is not text."""
        what = f"column {self.frame.columns[0]!r} holds numbers, not one character a base"
        return [] if self.as_written else [self.finding(what, "write it as text")]

    def refused(self, wrong: np.ndarray, what: str, mend: str) -> list[Problem]:
        """The rows in which a cell is `wrong` (N, T), told by the first such cell.

        `what` is a format of the column's name and the cell's value.
        """
        rows = np.flatnonzero(wrong.any(axis=1))

        def told(k: int) -> str:
            row, at = int(rows[k]), int(wrong[rows[k]].argmax())
            return what.format(self.frame.columns[at], str(self.frame.iat[row, at])[:40])

        return listed(self.path, _records(self.frame, rows), told, mend)

    def told(self, found: Mapping[int, str], mend: str) -> list[Problem]:
        """What was found in which rows: the first few, and a count."""
        records = _records(self.frame, np.array(list(found), dtype=np.int64))
        return listed(self.path, records, list(found.values()).__getitem__, mend)

    def finding(self, what: str, mend: str = "", severity: Severity = "error") -> Problem:
        """A problem of the whole file."""
        return Problem(where=str(self.path), what=what, mend=mend, severity=severity)

    def without_label(self, rows: np.ndarray) -> list[Problem]:
        """A warning that counts `rows` (N,), which have no label at all."""
        if not rows.any():
            return []
        first = _records(self.frame, np.flatnonzero(rows)[:1])[0]
        what = f"{rows.sum():,} of {len(rows):,} rows have no label (the first: {first})"
        return [
            self.finding(f"{what}; they are predicted, but not learnt or scored", "", "warning")
        ]


def chosen_columns(
    patterns: Sequence[str], tables: Mapping[str, pd.DataFrame], paths: Mapping[str, Path]
) -> tuple[str, ...]:
    """The columns of the training table that are named or match a shell pattern, in its order.

    Raises :class:`InputError` for a name or pattern without a column, and for columns that
    another table lacks.
    """
    header = [str(name) for name in tables["train"].columns]
    chosen: list[str] = []
    problems: list[Problem] = []
    for pattern in patterns:
        matching = [name for name in header if fnmatchcase(name, pattern)]
        if pattern in header or not matching:
            problems += _missing_columns(tables["train"], [pattern], paths["train"])
            matching = [pattern]
        chosen += matching
    stop_on_errors(problems)
    for split, frame in tables.items():
        missing = [name for name in dict.fromkeys(chosen) if name not in frame]
        problems += _missing_columns(frame, missing[:LISTED], paths[split])
        if len(missing) > LISTED:
            what = f"{len(missing):,} label columns of {paths['train']} are missing"
            problems.append(Problem(where=str(paths[split]), what=what))
    stop_on_errors(problems)
    return tuple(dict.fromkeys(chosen))


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "")


def infer_kind(train: LabelColumns) -> Kind:
    """What the training labels can only, or most likely, be."""
    one = len(train.frame.columns) == 1
    if one and _one_character_a_base(train):
        return "per_base"
    values = train.numbers[0]
    values = values[np.isfinite(values)]
    if not one:
        return "multilabel" if np.isin(values, (0, 1)).all() else "regression"
    if (values % 1 == 0).all():
        return "classes"
    return "fraction" if ((values >= 0) & (values <= 1)).all() else "regression"


def almost_fractions(train: LabelColumns) -> list[Problem]:
    """A warning where a few values alone keep one column from being fractions."""
    values = train.numbers[0]
    known = np.isfinite(values)
    outside = known & ((values < 0) | (values > 1))
    if values.shape[1] > 1 or not 0 < outside.sum() < 0.01 * known.sum():
        return []
    what = f"{outside.sum():,} of {known.sum():,} labels lie outside [0, 1]: read as regression"
    return [train.finding(what, "--target fraction names their rows", "warning")]


def almost_yes_or_no(train: LabelColumns) -> list[Problem]:
    """A warning where a few values alone keep several columns from being yes or no."""
    values = train.numbers[0]
    known = np.isfinite(values)
    others = known & (values != 0) & (values != 1)
    if values.shape[1] == 1 or not 0 < others.sum() < 0.05 * known.sum():
        return []
    what = f"{others.sum():,} of {known.sum():,} labels are neither 0 nor 1: read as regression"
    return [train.finding(what, "--target multilabel names their rows", "warning")]


def _numbers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A column as (N,) float64, NaN where it holds no number, and where it does so wrongly."""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(np.float64, na_value=np.nan), np.zeros(len(values), dtype=bool)
    spelled = _stripped(values).astype("str")
    present = ~spelled.isin(_MISSING)
    plain = spelled.str.casefold().replace({"true": "1", "false": "0"}).where(present)
    numbers = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64)
    return numbers, np.isnan(numbers) & present.to_numpy(dtype=bool)


def _one_character_a_base(table: LabelColumns) -> bool:
    if not table.as_written:
        return False
    present = table.texts.notna().to_numpy(dtype=bool)
    texts, lengths = table.texts[present], table.lengths[present]
    if not len(texts) or np.median(lengths) < _SHORTEST:
        return False
    # Most rows are enough: a row of another length is then named as what is wrong.
    matching = texts.str.len().to_numpy() == lengths
    decimals = texts.str.fullmatch(r"(?:0|[1-9][0-9]*)?\.[0-9]+").all()
    return bool(
        matching.mean() > 0.5 and texts.str.fullmatch(r"[0-9A-Za-z.]+").all() and not decimals
    )
