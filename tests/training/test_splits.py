"""Splits: three tables with the same classes, drawn by the seed, checked together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cedilla.errors import InputError, MissingData
from cedilla.training.splits import SPLITS, find_files, labels_of, read_splits, take

COLUMNS = {"sequence": "sequence", "label": ("label",), "kind": None}
needs_data = pytest.mark.skipif(
    "CEDILLA_DATA" not in os.environ, reason="CEDILLA_DATA names no folder of data sets"
)


@pytest.fixture
def write(tmp_path):
    """Three files with the given labels and sequences that are all different."""
    ends = {"train": "", "dev": "GG", "test": "CC"}

    def _write(**labels) -> dict[str, Path]:
        paths = {}
        for split, values in labels.items():
            rows = [
                f"{'ACGT'[i % 4] * (i // 4 + 1)}{ends[split]},{label}"
                for i, label in enumerate(values)
            ]
            paths[split] = tmp_path / f"{split}.csv"
            paths[split].write_text("\n".join(["sequence,label", *rows]) + "\n")
        return paths

    return _write


def read(files, *, rows=None, seed=0, trained_on="train"):
    return read_splits(files, trained_on=trained_on, rows=rows, seed=seed, **COLUMNS)


def complaints(files, **settings) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(files, **settings)
    return [str(problem) for problem in caught.value.problems]


def test_three_tables_in_order(write):
    splits = read(write(train=[0, 1, 2], dev=[0, 1, 2], test=[1, 0, 2]))
    assert [split for split, _ in splits] == list(SPLITS)
    assert splits.target.outputs == 3
    assert labels_of(splits.test).tolist() == [1, 0, 2]
    assert splits.notes == []


def test_classes_by_name_are_those_of_train(write):
    splits = read(write(train=["no", "yes"], dev=["yes", "no"], test=["no", "yes"]))
    assert splits.target.outputs == 2
    assert labels_of(splits.dev).tolist() == [1, 0]
    (problem,) = complaints(write(train=["no", "yes"], dev=["yes", "perhaps"], test=["no", "yes"]))
    assert "dev.csv line 3: label 'perhaps' is not usable; the classes are no, yes" in problem


@pytest.mark.parametrize("bad", SPLITS)
def test_a_table_that_cannot_be_read_does_not_hide_the_others(write, bad):
    files = write(train=[0, 1], dev=[0, 1], test=[0, 1])
    files[bad].write_text("sequence,label\nACGT,0\nAC-T,1\n")
    (problem,) = complaints(files)
    assert f"{files[bad]} line 3: '-' at position 3" in problem
    for path in files.values():
        path.unlink()
    assert len(complaints(files)) == 3


def test_rows_are_drawn_from_train_and_dev_but_not_from_test(write):
    files = write(train=[0, 1] * 20, dev=[0, 1] * 10, test=[0, 1] * 15)
    splits = read(files, rows=12)
    assert [len(table) for _, table in splits] == [12, 12, 30]
    assert read(files, rows=12).train.ids == splits.train.ids
    assert read(files, rows=12, seed=1).train.ids != splits.train.ids
    numbers = [int(i) for i in splits.train.ids]
    assert numbers == sorted(numbers)
    assert [len(table) for _, table in read(files, rows=25)] == [25, 20, 30]


def test_a_drawn_split_needs_both_classes(write):
    files = write(train=[0] * 50 + [1], dev=[0, 1], test=[0, 1])
    (problem,) = complaints(files, rows=5)
    assert problem.endswith("the 5 rows drawn for train are of one class; draw more")


def test_dev_serves_as_train_in_nine_tenths(write):
    dev = write(dev=[0, 1] * 50)["dev"]
    files = {"train": dev, "dev": dev, "test": write(test=[0, 1])["test"]}
    splits = read(files, trained_on="dev")
    assert splits.trained_on == "dev"
    assert [len(table) for _, table in splits] == [90, 10, 2]
    assert not set(splits.train.sequences) & set(splits.dev.sequences)


def test_two_splits_of_the_same_rows_are_refused(write):
    files = write(train=[0, 1], dev=[0, 1], test=[0, 1])
    copy = files["test"].with_name("copy.csv")
    copy.write_bytes(files["train"].read_bytes())
    (problem,) = complaints(files | {"test": copy})
    assert problem == (
        f"{files['train']}: --train and --test are the same rows ({copy} has the same content); "
        "give each split rows of its own"
    )
    assert len(complaints(dict.fromkeys(SPLITS, files["train"]))) == 3
    dev = files["dev"]
    (problem,) = complaints({"train": dev, "dev": dev, "test": dev}, trained_on="dev")
    assert "--dev and --test are the same rows" in problem


def test_taken_rows_keep_their_columns_together(write):
    table = read(write(train=[0, 1, 0, 1], dev=[0, 1], test=[0, 1])).train
    part = take(table, np.array([3, 0]))
    assert part.ids == ["5", "2"]
    assert part.sequences == ["T", "A"]
    assert part.labels.tolist() == [1, 0]
    assert list(part.frame.index) == [5, 2]
    assert len(table) == 4


def test_a_task_that_is_not_here_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("CEDILLA_DATA", raising=False)
    for train_on_dev in (False, True):
        with pytest.raises(MissingData):
            find_files("prom_core_tata", data_dir=tmp_path, train_on_dev=train_on_dev)
    with pytest.raises(InputError, match="prom_core_tata"):
        find_files("prom_core_tat", data_dir=tmp_path, train_on_dev=False)


@needs_data
def test_a_task_with_its_train_file_is_trained_on_it():
    files, trained_on = find_files("prom_core_tata", data_dir=None, train_on_dev=True)
    assert trained_on == "train"
    assert len(set(files.values())) == 3
    splits = read(files, trained_on=trained_on)
    assert [len(table) for _, table in splits] == [4904, 613, 613]


@needs_data
def test_a_task_without_its_train_file_is_trained_on_dev_if_asked():
    with pytest.raises(MissingData):
        find_files("EMP/H3K4me3", data_dir=None, train_on_dev=False)
    files, trained_on = find_files("EMP/H3K4me3", data_dir=None, train_on_dev=True)
    assert trained_on == "dev"
    assert files["train"] == files["dev"]
    expected = len(pd.read_csv(files["dev"]))
    splits = read(files, trained_on=trained_on)
    assert len(splits.train) + len(splits.dev) == expected
