"""The train, dev and test sets of a fine-tuning: a user's tables or a task of the catalogue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from cedilla.dna.tables import SequenceTable, read_sequences
from cedilla.errors import InputError, MissingData, Problem, stop_on_errors
from cedilla.files import sha256
from cedilla.tasks.catalogue import find_task
from cedilla.tasks.download import locate
from cedilla.training.label_columns import Kind
from cedilla.training.label_values import Labels
from cedilla.training.targets import Target, read_target

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Tables whose labels are of one target; `test` is None where it stays closed.

    trained_on: ``dev`` when a task's train file could not be had and nine tenths of its dev file
    serve instead; such a result compares with no published one.
    """

    train: SequenceTable
    dev: SequenceTable
    test: SequenceTable | None
    target: Target
    trained_on: str = "train"
    notes: list[Problem] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, SequenceTable]]:
        named = (("train", self.train), ("dev", self.dev), ("test", self.test))
        return ((split, table) for split, table in named if table is not None)


def find_files(
    task: str, *, data_dir: Path | None, train_on_dev: bool, dev_only: bool = False
) -> tuple[dict[str, Path], str]:
    """The files of a task, without test if `dev_only`, and the split that they train on."""
    found = find_task(task)
    others = [split for split in SPLITS[1:] if split != "test" or not dev_only]
    try:
        train, trained_on = locate(found, "train", data_dir=data_dir), "train"
    except MissingData:
        if not train_on_dev:
            raise
        train, trained_on = locate(found, "dev", data_dir=data_dir), "dev"
    files = {split: locate(found, split, data_dir=data_dir) for split in others}
    return {"train": train, **files}, trained_on


def read_splits(
    files: dict[str, Path],
    *,
    trained_on: str,
    sequence: str,
    label: Sequence[str],
    id: str | None = None,
    kind: Kind | None,
    rows: int | None,
    seed: int,
) -> Splits:
    """Read the tables of `files`; what the labels are follows from the training table.

    `rows` takes that many training rows, and as many dev rows at most, drawn by `seed`. Raises
    :class:`InputError` with the problems of all tables, and where two are one file.
    """
    problems = _check_apart(files, trained_on)
    tables: dict[str, SequenceTable] = {}
    for split, file in files.items():
        try:
            tables[split] = read_sequences(
                file, sequence=sequence, label=None, id=id, verbatim=label, collect=problems
            )
        except InputError as error:
            problems += [p for p in error.problems if p not in problems]
    if len(tables) < len(files):
        raise InputError(dict.fromkeys(problems))
    notes = [note for table in tables.values() for note in table.notes]
    try:
        target, labels = read_target(
            {
                s: t.frame.drop(columns=[sequence, *([id] if id else [])], errors="ignore")
                for s, t in tables.items()
            },
            tuple(label),
            kind=kind,
            paths=files,
            lengths={s: np.array([len(row) for row in t.sequences]) for s, t in tables.items()},
            notes=notes,
        )
    except InputError as error:
        raise InputError([*problems, *error.problems]) from None
    stop_on_errors(problems)
    tables = {s: replace(table, labels=_as_array(labels[s])) for s, table in tables.items()}
    rng = np.random.default_rng(seed)
    if trained_on == "dev":
        order = rng.permutation(len(tables["dev"]))
        tenth = len(order) // 10
        tables["train"] = take(tables["dev"], order[tenth:])
        tables["dev"] = take(tables["dev"], order[:tenth])
    if rows is not None:
        for split in ("train", "dev"):
            table = tables[split]
            if rows < len(table):
                tables[split] = take(table, np.sort(rng.permutation(len(table))[:rows]))
    _refuse_useless(tables, target)
    return Splits(
        train=tables["train"],
        dev=tables["dev"],
        test=tables.get("test"),
        target=target.scaled_to(labels_of(tables["train"])),
        trained_on=trained_on,
        notes=[*notes, *_contradictions(tables["train"])],
    )


def take(table: SequenceTable, rows: np.ndarray) -> SequenceTable:
    """The given rows of a table."""
    return replace(
        table,
        ids=[table.ids[i] for i in rows],
        sequences=[table.sequences[i] for i in rows],
        labels=None if table.labels is None else table.labels[rows],
        frame=table.frame.iloc[rows],
    )


def labels_of(table: SequenceTable) -> np.ndarray:
    """The labels of a table that was read with them."""
    assert table.labels is not None, f"{table.path} was read without labels"
    return table.labels


def _as_array(labels: Labels) -> np.ndarray:
    """Labels a sequence as they are; those of single bases (S_i,) as N objects."""
    if isinstance(labels, np.ndarray):
        return labels
    found = np.empty(len(labels), dtype=object)
    found[:] = labels
    return found


def _check_apart(files: dict[str, Path], trained_on: str) -> list[Problem]:
    """Splits that are one file, by path or by content: their rows would be learnt and scored."""
    apart = [split for split in files if split != "train" or trained_on == "train"]
    content = {split: sha256(files[split]) for split in apart if files[split].is_file()}
    return [
        Problem(
            where=str(files[one]),
            what=f"--{one} and --{other} are the same rows ({files[other]} has the same content)",
            mend="give each split rows of its own",
        )
        for one, other in combinations(content, 2)
        if content[one] == content[other]
    ]


def _refuse_useless(tables: dict[str, SequenceTable], target: Target) -> None:
    """Raise :class:`InputError` where no drawn row has a label, or all are of one class."""
    problems = []
    for split, table in tables.items():
        labels = labels_of(table)
        what = ""
        if not any(_has_label(label) for label in labels):
            what = f"none of the {len(table):,} rows drawn for {split} has a label"
        elif target.kind == "classes" and len(np.unique(labels)) < 2:
            what = f"the {len(table):,} rows drawn for {split} are of one class"
        if what:
            problems.append(Problem(where=str(table.path), what=what, mend="draw more"))
    stop_on_errors(problems)


def _has_label(label: np.ndarray) -> bool:
    """Whether a class, some numbers (T,), or the classes of bases (S,) are there."""
    if np.issubdtype(np.asarray(label).dtype, np.floating):
        return not bool(np.isnan(label).all())
    return bool((np.asarray(label) >= 0).any())


def _contradictions(table: SequenceTable) -> list[Problem]:
    """A warning where one sequence stands with several labels: they are kept, and cannot all be
    learnt."""
    labels: dict[str, set[bytes]] = defaultdict(set)
    for sequence, label in zip(table.sequences, labels_of(table), strict=True):
        labels[sequence].add(np.asarray(label).tobytes())
    twice = {sequence for sequence, some in labels.items() if len(some) > 1}
    if not twice:
        return []
    rows = sum(sequence in twice for sequence in table.sequences)
    what = f"{len(twice):,} sequences stand with different labels, in {rows:,} rows"
    return [Problem(where=str(table.path), what=what, mend="look at them: all are kept")]
