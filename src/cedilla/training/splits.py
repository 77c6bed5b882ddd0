"""The train, dev and test sets of a fine-tuning: a user's tables or a task of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from cedilla.dna.tables import SequenceTable, read_sequences
from cedilla.errors import InputError, MissingData, Problem, stop_on_errors
from cedilla.files import sha256
from cedilla.tasks.catalogue import find_task
from cedilla.tasks.download import locate

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three tables with the same classes.

    trained_on: ``dev`` when a task's train file could not be had and nine tenths of its dev file
    serve instead; such a result compares with no published one.
    """

    train: SequenceTable
    dev: SequenceTable
    test: SequenceTable
    classes: int
    trained_on: str = "train"

    def __iter__(self) -> Iterator[tuple[str, SequenceTable]]:
        return iter((("train", self.train), ("dev", self.dev), ("test", self.test)))

    @property
    def notes(self) -> list[Problem]:
        """The warnings of all three tables."""
        return [note for _, table in self for note in table.notes]


def find_files(
    task: str, *, data_dir: Path | None, train_on_dev: bool
) -> tuple[dict[str, Path], str]:
    """The files of a task, and the split that they train on."""
    found = find_task(task)
    try:
        return {split: locate(found, split, data_dir=data_dir) for split in SPLITS}, "train"
    except MissingData:
        if not train_on_dev:
            raise
    dev = locate(found, "dev", data_dir=data_dir)
    test = locate(found, "test", data_dir=data_dir)
    return {"train": dev, "dev": dev, "test": test}, "dev"


def read_splits(
    files: dict[str, Path],
    *,
    trained_on: str,
    sequence: str,
    label: str,
    rows: int | None,
    seed: int,
) -> Splits:
    """Read the three tables; labels are those of the training table.

    `rows` takes that many training rows, and as many dev rows at most, drawn by `seed`. Raises
    :class:`InputError` with the problems of all three tables, and where two are one file.
    """
    problems = _check_apart(files, trained_on)
    tables: dict[str, SequenceTable] = {}
    classes: int | list[str] | None = None
    for split in SPLITS:
        try:
            tables[split] = read_sequences(
                files[split], sequence=sequence, label=label, classes=classes
            )
            if split == "train":
                classes = tables["train"].classes
        except InputError as error:
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise InputError(problems)
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
    n = len(classes) if isinstance(classes, list) else int(classes or 0)
    splits = Splits(**tables, classes=n, trained_on=trained_on)
    stop_on_errors(
        Problem(
            where=str(table.path),
            what=f"the {len(table):,} rows drawn for {split} are of one class",
            mend="draw more",
        )
        for split, table in splits
        if len(np.unique(labels_of(table))) < 2
    )
    return splits


def _check_apart(files: dict[str, Path], trained_on: str) -> list[Problem]:
    """Splits that are one file, by path or by content: their rows would be learnt and scored."""
    apart = [split for split in SPLITS if split != "train" or trained_on == "train"]
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
    """The labels (N,) int64 of a table that was read with them."""
    assert table.labels is not None, f"{table.path} was read without labels"
    return table.labels
