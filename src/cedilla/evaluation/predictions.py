"""Files of predictions: read, checked as a whole, and matched row by row with another file.

Columns: ``id``, ``label``, and ``probability`` (of class 1) or ``probability_0``,
``probability_1``, … for more classes; optionally ``split``, ``arm``, ``seed`` and ``block``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cedilla.dna.tables import listed, read_table
from cedilla.errors import InputError, Problem, stop_on_errors

TEXT = ("id", "arm", "split", "seed", "block")
WHOLE = "all"  # the name of a set where the file has neither split nor arm
# Probabilities in half precision add up to 1 only so well.
SUM_TOLERANCE = 0.01
# The rows (N,) of a kind, what is wrong with row k, and the mend.
Kind = tuple[Any, Callable[[int], str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """One arm and split: the same rows for every seed.

    ids (N,), labels (N,), probabilities (S, N) or (S, N, C), blocks (N,) or None.
    """

    path: Path
    name: str
    ids: NDArray[Any]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    blocks: NDArray[Any] | None

    @property
    def rows(self) -> int:
        """Rows in the file: one per id and seed."""
        return len(self.probabilities) * len(self.ids)

    @property
    def resampled(self) -> str:
        """What the bootstrap resamples, and how many there are."""
        if self.blocks is None:
            return f"{len(self.ids):,} rows"
        return f"{len(np.unique(self.blocks)):,} blocks"


def read_predictions(path: Path) -> dict[str, Predictions]:
    """The sets of a Parquet, CSV or TSV file by name: the arm, the split, or both.

    Raises :class:`InputError` with everything that is wrong: missing columns, ids that are empty
    or stand twice, labels that are no class or of one class only, probabilities that are missing,
    outside [0, 1] or do not add up to 1, seeds that do not have the same rows, and rows without
    a block among rows with one.
    """
    if path.is_dir():
        mend = f"name the file in it, such as {path / 'predictions' / 'test.parquet'}"
        raise InputError.one(path, "is a directory", mend)
    frame = read_table(path, text=TEXT)
    columns = _probability_columns(frame, path)
    table = _typed(frame, columns)
    problems = _check_rows(table, frame, columns, path)
    sets = {str(name): part for name, part in table.groupby("set", sort=False)}
    for name, part in sets.items():
        problems += _check_set(part, path, name)
    stop_on_errors(problems)
    return {name: _aligned(part, columns, path, name) for name, part in sets.items()}


def pair(
    ours: dict[str, Predictions], theirs: dict[str, Predictions]
) -> list[tuple[Predictions, Predictions]]:
    """Sets of the same name, or the only set of each file, with the rows in the same order.

    Raises :class:`InputError` where no set matches, or a pair differs in ids, labels or classes.
    """
    pairs = [(ours[name], theirs[name]) for name in ours if name in theirs]
    if not pairs and len(ours) == len(theirs) == 1:
        pairs = [(next(iter(ours.values())), next(iter(theirs.values())))]
    if not pairs:
        here, there = (next(iter(sets.values())).path for sets in (ours, theirs))
        mend = f"it has {', '.join(theirs)}; the other has {', '.join(ours)}"
        raise InputError.one(there, f"has no arm and split in common with {here}", mend)
    stop_on_errors(problem for a, b in pairs for problem in _unlike(a, b))
    return [(a, _reordered(b, a.ids)) for a, b in pairs]


def _probability_columns(frame: pd.DataFrame, path: Path) -> list[str]:
    """``probability``, or ``probability_0`` … in order. Raises where columns are missing."""
    names = [str(name) for name in frame.columns]
    numbers = [name.removeprefix("probability_") for name in names if "probability_" in name]
    several = [number for number in numbers if number.isdigit()]
    wanted = [f"probability_{k}" for k in range(max(2, len(several)))]
    single = "probability" in names
    problems = [f"has no column {name!r}" for name in ("id", "label") if name not in names]
    if single and several:
        problems.append("has both 'probability' and 'probability_0' …, and only one can be meant")
    elif not single and not several:
        problems.append("has no column 'probability', nor 'probability_0', 'probability_1', …")
    elif not single:
        problems += [f"has no column {name!r}" for name in wanted if name not in names]
    mend = f"its columns: {', '.join(names[:12])}" + (", …" if len(names) > 12 else "")
    stop_on_errors(Problem(where=str(path), what=what, mend=mend) for what in problems)
    return ["probability"] if single else wanted


def _typed(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The columns that count, as text and floats, NaN where a cell is no number."""
    table = pd.DataFrame(index=frame.index)
    for name in TEXT:
        cells = frame[name] if name in frame else pd.Series("", index=frame.index)
        table[name] = cells.astype("string").str.strip().fillna("").astype("str")
    # Integers that stood in a column with gaps come back as floats.
    table["seed"] = table["seed"].str.removesuffix(".0")
    table["set"] = (table["arm"] + " " + table["split"]).str.strip().replace("", WHOLE)
    for name in ("label", *columns):
        table[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    return table


def _check_rows(
    table: pd.DataFrame, frame: pd.DataFrame, columns: Sequence[str], path: Path
) -> list[Problem]:
    """Every kind of row that cannot be used: the first few, and how many there are."""
    record = frame.attrs["record"]
    names = [f"{record} {n} id {i}" for n, i in zip(table.index, table["id"], strict=True)]
    written, classes = frame["label"].tolist(), max(2, len(columns))
    kinds = [
        *_bad_rows(table, written, classes),
        *_bad_probabilities(table[list(columns)].to_numpy()),
    ]
    problems = []
    for wrong, what, mend in kinds:
        at = np.flatnonzero(wrong).tolist()
        problems += listed(path, [names[k] for k in at], _at(what, at), mend)
    return problems


def _at(what: Callable[[int], str], rows: Sequence[int]) -> Callable[[int], str]:
    return lambda k: what(rows[k])


def _bad_rows(table: pd.DataFrame, written: Sequence[Any], classes: int) -> Iterator[Kind]:
    label, empty = table["label"], table["id"] == ""
    twice = table.duplicated(["set", "seed", "id"]) & ~empty
    known = (label >= 0) & (label < classes) & (label % 1 == 0)
    yield empty, lambda _: "the id is empty", "name the row"
    once = "keep one row per id, seed, split and arm"
    yield twice, lambda _: "the id stands further up already", once
    yield ~known, lambda k: f"label {written[k]} is no class", f"use 0 to {classes - 1}"


def _bad_probabilities(p: NDArray[np.float64]) -> Iterator[Kind]:
    """`p` (N, 1) or (N, C)."""
    missing, outside = np.isnan(p).any(axis=1), ((p < 0) | (p > 1)).any(axis=1)
    worst = np.abs(np.nan_to_num(p, nan=0.5) - 0.5).argmax(axis=1)
    uneven = (np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE) & (p.shape[1] > 1) & ~missing & ~outside
    yield missing, lambda _: "a probability is missing or no number", "predict that row again"
    yield (
        outside,
        lambda k: f"probability {p[k, worst[k]]:g} is outside [0, 1]",
        "give probabilities, not logits or percent",
    )
    softmax = "give the softmax of the logits"
    yield uneven, lambda _: "its probabilities do not add up to 1", softmax


def _check_set(part: pd.DataFrame, path: Path, name: str) -> list[Problem]:
    """What makes one arm and split unusable as a whole."""
    found = [*_one_of_a_kind(part), *_seeds_apart(part)]
    where = str(path) if name == WHOLE else f"{path} {name}"
    return [Problem(where=where, what=what, mend=mend) for what, mend in found]


def _one_of_a_kind(part: pd.DataFrame) -> Iterator[tuple[str, str]]:
    labels = part["label"].dropna().unique()
    if len(labels) == 1:
        what = f"has labels of one class only ({labels[0]:g})"
        yield what, "two are needed to measure anything"
    blank = int((part["block"] == "").sum())
    if 0 < blank < len(part):
        yield f"{blank:,} of {len(part):,} rows have no block", "give all of them one, or none"
    if blank == 0 and part["block"].nunique() == 1:
        yield "has one block only", "use smaller blocks, or leave the column out"


def _seeds_apart(part: pd.DataFrame) -> Iterator[tuple[str, str]]:
    by_seed = {str(seed): set(rows["id"]) for seed, rows in part.groupby("seed", sort=False)}
    everything = set(part["id"])
    for seed, ids in by_seed.items():
        if lacking := sorted(everything - ids):
            what = f"seed {seed} lacks {_some(lacking)} of the other seeds"
            yield what, "predict the same rows with every seed"
    for column in ("label", "block"):
        count = part.groupby("id")[column].nunique()
        if unlike := sorted(count.index[count > 1]):
            what = f"{_some(unlike)} with more than one {column}"
            yield what, "an id is one row of the data, whatever the seed"


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
    return f"{len(ids):,} {'id' if len(ids) == 1 else 'ids'} ({shown})"


def _aligned(part: pd.DataFrame, columns: Sequence[str], path: Path, name: str) -> Predictions:
    seeds = [rows.set_index("id") for _, rows in part.groupby("seed", sort=False)]
    first = seeds[0]
    stacked = np.stack([rows.loc[first.index, list(columns)].to_numpy() for rows in seeds])
    return Predictions(
        path=path,
        name=name,
        ids=first.index.to_numpy(),
        labels=first["label"].to_numpy().astype(np.int64),
        probabilities=stacked[:, :, 0] if len(columns) == 1 else stacked,
        blocks=None if (first["block"] == "").any() else first["block"].to_numpy(),
    )


def _reordered(predictions: Predictions, ids: NDArray[Any]) -> Predictions:
    order = pd.Index(predictions.ids).get_indexer(pd.Index(ids))
    return replace(
        predictions,
        ids=ids,
        labels=predictions.labels[order],
        probabilities=predictions.probabilities[:, order],
        blocks=None if predictions.blocks is None else predictions.blocks[order],
    )


def _unlike(ours: Predictions, theirs: Predictions) -> list[Problem]:
    """Why two sets cannot be compared row by row."""
    here, there = (pd.Series(s.labels, index=pd.Index(s.ids)) for s in (ours, theirs))
    lacking = [
        (theirs, sorted(set(ours.ids) - set(theirs.ids)), ours),
        (ours, sorted(set(theirs.ids) - set(ours.ids)), theirs),
    ]
    found = [
        (one, f"lacks {_some(ids)} of {other.path}", "predict the same rows with both")
        for one, ids, other in lacking
        if ids
    ]
    both = here.index.intersection(there.index)
    if unlike := sorted(both[(here[both] != there[both]).to_numpy()]):
        what = f"{_some(unlike)} with another label than in {ours.path}"
        found.append((theirs, what, "score both against the same labels"))
    if ours.probabilities.shape[2:] != theirs.probabilities.shape[2:]:
        what = f"has another number of classes than {ours.path}"
        found.append((theirs, what, "compare models of one task"))
    return [Problem(where=f"{s.path} {s.name}", what=what, mend=mend) for s, what, mend in found]
