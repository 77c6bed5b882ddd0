"""Predictions are checked as a whole: every problem at once, by file and row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cedilla.errors import InputError
from cedilla.evaluation.predictions import pair, read_predictions


def table(rows=6, **columns) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "id": [f"r{k}" for k in range(rows)],
            "label": np.arange(rows) % 2,
            "probability": np.linspace(0.1, 0.9, rows),
        }
    )
    return frame.assign(**columns)


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def problems(frame: pd.DataFrame, path: Path) -> list[str]:
    write(frame, path)
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert all(problem.mend or "more" in problem.what for problem in caught.value.problems)
    return [str(problem).replace(str(path), path.name) for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.csv.gz", "p.tsv"])
def test_formats_give_the_same(tmp_path, name):
    frame = table(id=["007", "NA", "a", "b", "c", "d"], split="test", seed=0, block=None, group="c")
    found = read_predictions(write(frame, tmp_path / name))["test"]
    assert list(found.ids) == ["007", "NA", "a", "b", "c", "d"]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.probabilities == pytest.approx(frame["probability"].to_numpy()[None])
    assert found.blocks is None
    assert found.resampled == "6 rows"
    assert found.rows == 6


def test_seeds_are_aligned_by_id(tmp_path):
    one = table(seed=7, block=list("xxyyzz"))
    two = one.assign(seed=8, probability=one["probability"] / 2).iloc[::-1]
    found = read_predictions(write(pd.concat([one, two]), tmp_path / "p.parquet"))["all"]
    assert found.probabilities.shape == (2, 6)
    assert found.probabilities[1] == pytest.approx(found.probabilities[0] / 2)
    assert list(found.blocks) == list("xxyyzz")
    assert found.resampled == "3 blocks"
    assert found.rows == 12


def test_sets_are_arms_and_splits(tmp_path):
    parts = [
        table(arm=arm, split=split) for arm in ("beta", "sequence") for split in ("dev", "test")
    ]
    found = read_predictions(write(pd.concat(parts), tmp_path / "p.parquet"))
    assert list(found) == ["beta dev", "beta test", "sequence dev", "sequence test"]


def test_more_than_two_classes(tmp_path):
    p = np.random.default_rng(0).dirichlet(np.ones(11), 6)
    frame = (
        table()
        .drop(columns="probability")
        .assign(**{f"probability_{k}": p[:, k] for k in range(11)})
    )
    found = read_predictions(write(frame[sorted(frame.columns)], tmp_path / "p.parquet"))["all"]
    assert found.probabilities[0] == pytest.approx(p)


def test_all_problems_of_the_rows_come_at_once(tmp_path):
    frame = table(8).astype({"label": object, "probability": object})
    frame.loc[1, "probability"] = "high"
    frame.loc[2, "probability"] = 1.7
    frame.loc[3, "label"] = 2
    frame.loc[4, "label"] = "positive"
    frame.loc[5, "id"] = ""
    frame.loc[6, "id"] = "r0"
    assert problems(frame, tmp_path / "p.csv") == [
        "p.csv line 7 id : the id is empty; name the row",
        "p.csv line 8 id r0: the id stands further up already; "
        "keep one row per id, seed, split and arm",
        "p.csv line 5 id r3: label 2 is no class; use 0 to 1",
        "p.csv line 6 id r4: label positive is no class; use 0 to 1",
        "p.csv line 3 id r1: a probability is missing or no number; predict that row again",
        "p.csv line 4 id r2: probability 1.7 is outside [0, 1]; "
        "give probabilities, not logits or percent",
    ]


def test_many_bad_rows_are_counted(tmp_path):
    found = problems(table(10_000, probability=-0.2), tmp_path / "p.parquet")
    assert len(found) < 10
    assert found[0].startswith("p.parquet row 1 id r0: probability -0.2 is outside [0, 1]")
    assert "10,000 in all" in found[-1]


def test_missing_probabilities_in_parquet(tmp_path):
    frame = table()
    frame.loc[2, "probability"] = np.nan
    assert problems(frame, tmp_path / "p.parquet") == [
        "p.parquet row 3 id r2: a probability is missing or no number; predict that row again"
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id"], ["no column 'label'", "no column 'probability', nor 'probability_0'"]),
        (["label", "probability_0"], ["no column 'id'", "no column 'probability_1'"]),
        (["id", "label", "probability_0", "probability_2"], ["no column 'probability_1'"]),
        (["id", "label", "probability", "probability_0"], ["has both"]),
    ],
)
def test_missing_columns(tmp_path, columns, expected):
    found = problems(pd.DataFrame({name: [0, 1] for name in columns}), tmp_path / "p.parquet")
    assert len(found) == len(expected)
    for text, what in zip(found, expected, strict=True):
        assert what in text
        assert ", ".join(columns) in text


def test_probabilities_that_do_not_add_up(tmp_path):
    frame = table(2).drop(columns="probability").assign(probability_0=[0.5, 0.9], probability_1=0.5)
    assert problems(frame, tmp_path / "p.parquet") == [
        "p.parquet row 2 id r1: its probabilities do not add up to 1; "
        "give the softmax of the logits"
    ]


def test_all_problems_of_a_set_come_at_once(tmp_path):
    good = table(split="dev")
    one = table(split="test", label=1, seed=0, block=["a", "", "b", "b", "c", "c"])
    two = one.assign(seed=1, block="d")[1:]
    assert problems(pd.concat([good, one, two]), tmp_path / "p.parquet") == [
        "p.parquet test: has labels of one class only (1); two are needed to measure anything",
        "p.parquet test: 1 of 11 rows have no block; give all of them one, or none",
        "p.parquet test: seed 1 lacks 1 id (r0) of the other seeds; "
        "predict the same rows with every seed",
        "p.parquet test: 5 ids (r1, r2, r3, …) with more than one block; "
        "an id is one row of the data, whatever the seed",
    ]


def test_labels_that_change_with_the_seed_and_a_single_block(tmp_path):
    one, two = table(seed=0, block="a"), table(seed=1, block="a")
    two.loc[0, "label"] = 1
    assert problems(pd.concat([one, two]), tmp_path / "p.csv") == [
        "p.csv: has one block only; use smaller blocks, or leave the column out",
        "p.csv: 1 id (r0) with more than one label; "
        "an id is one row of the data, whatever the seed",
    ]


def test_a_run_directory_is_told_from_a_file(tmp_path):
    with pytest.raises(
        InputError, match=r"is a directory; name the file in it, such as .*test\.pa"
    ):
        read_predictions(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_predictions(tmp_path / "p.parquet")


def sets(path: Path, *frames: pd.DataFrame):
    return read_predictions(write(pd.concat(frames), path))


def test_pairs_have_their_rows_in_one_order(tmp_path):
    ours = sets(tmp_path / "a.csv", table(split="dev"), table(split="test", block=list("xxyyzz")))
    theirs = sets(tmp_path / "b.csv", table(split="test", block=list("xxyyzz")).iloc[::-1])
    [(a, b)] = pair(ours, theirs)
    assert (a.name, b.name) == ("test", "test")
    assert list(a.ids) == list(b.ids)
    assert list(a.blocks) == list(b.blocks)
    assert (a.labels == b.labels).all()
    assert b.probabilities == pytest.approx(a.probabilities)


def test_the_only_sets_are_paired_whatever_their_names(tmp_path):
    ours = sets(tmp_path / "a.csv", table(arm="beta", split="test"))
    [(a, b)] = pair(ours, sets(tmp_path / "b.csv", table()))
    assert (a.name, b.name) == ("beta test", "all")


def test_pairs_that_differ_say_in_what(tmp_path):
    theirs = table(8)[2:]
    theirs.loc[3, "label"] = 0
    ours = sets(tmp_path / "a.csv", table())
    with pytest.raises(InputError) as caught:
        pair(ours, sets(tmp_path / "b.csv", theirs))
    assert str(caught.value).replace(f"{tmp_path}/", "").split("\n") == [
        "b.csv all: lacks 2 ids (r0, r1) of a.csv; predict the same rows with both",
        "a.csv all: lacks 2 ids (r6, r7) of b.csv; predict the same rows with both",
        "b.csv all: 1 id (r3) with another label than in a.csv; score both against the same labels",
    ]


def test_pairs_need_a_common_set_and_the_same_classes(tmp_path):
    ours = sets(tmp_path / "a.csv", table(split="dev"), table(split="test"))
    with pytest.raises(InputError, match=r"no arm and split in common .*it has all; the other"):
        pair(ours, sets(tmp_path / "b.csv", table()))
    three = table(split="test").drop(columns="probability")
    three = three.assign(probability_0=0.2, probability_1=0.3, probability_2=0.5)
    with pytest.raises(InputError, match="another number of classes"):
        pair(ours, sets(tmp_path / "c.csv", three))
