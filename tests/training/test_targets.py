"""What the labels ask for, and every way in which they can be wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cedilla.dna.tables import read_table
from cedilla.errors import InputError
from cedilla.metrics.classification import classification_metrics
from cedilla.metrics.per_base import per_base_metrics
from cedilla.metrics.regression import regression_metrics
from cedilla.training.targets import DIRECTION, Target, read_target

NAN = float("nan")
SPLITS = ("train", "dev", "test")


def read(tmp_path, splits, columns=("label",), *, kind=None, length=10, verbatim=True):
    """Write a CSV of label columns for each split, and read the target from them.

    `splits`: for each split a list (one column) or a mapping of columns. Also the warnings.
    """
    frames, paths = {}, {}
    for split, values in splits.items():
        table = pd.DataFrame(values if isinstance(values, dict) else {"label": values})
        paths[split] = tmp_path / f"{split}.csv"
        table.insert(0, "place", "chr1")
        table.to_csv(paths[split], index=False)
        frames[split] = read_table(paths[split], text=list(table) if verbatim else ())
    lengths = {s: np.full(len(frame), length) for s, frame in frames.items()}
    notes = []
    target, labels = read_target(
        frames, columns, kind=kind, paths=paths, lengths=lengths, notes=notes
    )
    return target, labels, [str(note).replace(f"{tmp_path}/", "") for note in notes]


def same(values):
    """Three splits with the same labels."""
    return dict.fromkeys(SPLITS, values)


def complaints(tmp_path, *given, **settings) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(tmp_path, *given, **settings)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize("verbatim", [True, False])
@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([0, 1, 2, 1], "classes", ("0", "1", "2")),
        ([0.0, 1.0, 1.0], "classes", ("0", "1")),
        ([True, False, True], "classes", ("0", "1")),
        (["yes", "no", "maybe"], "classes", ("maybe", "no", "yes")),
        ([0.5, 1.5, -2], "regression", ("label",)),
        ([0, 1, 0.25], "fraction", ("label",)),
        ([0.5, None, 1.0], "fraction", ("label",)),
        (["0000010200", "0000000000"], "per_base", ("0", "1", "2")),
        (["nnnnnAnDnn", "nnn..nnnnn"], "per_base", ("n", "A", "D")),
        ({"a": [0, 1], "b": [1, 0], "c": [1, 0]}, "multilabel", ("a", "b", "c")),
        ({"a": [0, 1], "b": [1, 0.5], "c": [1, 0]}, "regression", ("a", "b", "c")),
    ],
)
def test_the_kind_follows_from_the_labels(tmp_path, values, kind, names, verbatim):
    columns = ("?",) if isinstance(values, dict) else ("label",)
    if not verbatim and values == ["0000010200", "0000000000"]:
        pytest.skip("digits lose their zeros where they are read as numbers")
    target, labels, _ = read(tmp_path, same(values), columns, verbatim=verbatim)
    assert (target.kind, target.names) == (kind, names)
    assert target.outputs == len(names)
    assert set(labels) == set(SPLITS)


def test_labels_of_every_kind_have_their_shape(tmp_path):
    cases = {
        "classes": (["b", "a"], np.array([1, 0])),
        "fraction": ([0.25, None], np.array([[0.25], [NAN]], dtype=np.float32)),
        "regression": ([2, None], np.array([[2], [NAN]], dtype=np.float32)),
        "multilabel": (["TRUE", None], np.array([[1], [NAN]], dtype=np.float32)),
    }
    for kind, (values, expected) in cases.items():
        more = {"classes": "a", "fraction": 0.5, "regression": -1, "multilabel": "false"}[kind]
        _, labels, _ = read(tmp_path, same([*values, more]), kind=kind)
        np.testing.assert_array_equal(labels["dev"][:2], expected)
        assert labels["dev"].dtype == expected.dtype
    _, labels, notes = read(tmp_path, same(["00000.1000", None]))
    assert [row.tolist() for row in labels["test"]] == [[0] * 5 + [-1, 1, 0, 0, 0], [-1] * 10]
    assert labels["test"][0].dtype == np.int8
    assert notes[0] == (
        "train.csv: 1 of 2 rows have no label (the first: line 3); they are predicted, but not "
        "learnt or scored"
    )


def test_patterns_stand_for_columns_in_the_order_of_the_header(tmp_path):
    values = {"y_2": [0, 1], "x": [1, 0], "y_1": [1, 0], "y[": [0, 1]}
    assert read(tmp_path, same(values), ("y_*", "x"))[0].columns == ("y_2", "y_1", "x")
    assert read(tmp_path, same(values), ("y[", "y_1", "y_?"))[0].columns == ("y[", "y_1", "y_2")
    assert complaints(tmp_path, same(values), ("z_*", "y_3")) == [
        "train.csv: has no column 'z_*'; its columns: place, y_2, x, y_1, y[",
        "train.csv: has no column 'y_3'; did you mean 'y_2'? its columns: place, y_2, x, y_1, y[",
    ]
    other = {"dev": {"y_1": [0, 1]}, "test": {"w": [0, 1]}}
    assert [
        line.split(";")[0] for line in complaints(tmp_path, {"train": values} | other, ("y_*",))
    ] == [
        "dev.csv: has no column 'y_2'",
        "test.csv: has no column 'y_2'",
        "test.csv: has no column 'y_1'",
    ]
    many = {f"y_{k}": [0, 1] for k in range(919)}
    lost = complaints(tmp_path, {"train": many, "dev": values, "test": many}, ("y_*",))
    assert len(lost) == 6
    assert lost[-1].startswith("dev.csv: 917 label columns of ")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            ["no", "yes"],
            "column 'label': 2 classes (no, yes)",
        ),
        (
            [0.5, 0.25],
            "column 'label': fractions from 0 to 1",
        ),
        ([2.5, 1], "column 'label': numbers"),
        (
            ["nnnnnAnDnn", "nnnnnnnnnn"],
            "column 'label': a class for every base (A, D; n is none)",
        ),
        (
            {f"y{k}": [0, 1] for k in range(7)},
            "7 columns: yes or no (y0, y1, y2, y3, y4 and 2 more)",
        ),
    ],
)
def test_a_target_says_itself_in_a_line(tmp_path, values, line):
    columns = ("y*",) if isinstance(values, dict) else ("label",)
    assert str(read(tmp_path, same(values), columns)[0]) == line


def test_every_metric_has_a_direction():
    targets = [Target(kind=kind, columns=("y",), names=("y",)) for kind in
               ("classes", "multilabel", "regression", "fraction", "per_base")]  # fmt: skip
    known = {name for target in targets for name in target.metrics}
    assert all(target.metric in target.metrics for target in targets)
    assert known | {"loss"} == set(DIRECTION)
    assert {name for name, way in DIRECTION.items() if way == "lower"} == {
        "mse", "mae", "brier", "loss",
    }  # fmt: skip


def test_predictions_are_probabilities_or_in_the_units_of_the_labels(tmp_path):
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    classes = Target(kind="classes", columns=("y",), names=("0", "1"))
    np.testing.assert_allclose(classes.predictions(logits), [[0.119203, 0.880797]], rtol=1e-5)
    yes = Target(kind="multilabel", columns=("a", "b"), names=("a", "b"))
    np.testing.assert_allclose(yes.predictions(logits), [[0.5, 0.880797]], rtol=1e-5)
    values = {"a": [100.0, 300.0, None], "b": [0.5, 1.0, 1.5]}
    numbers, labels, _ = read(tmp_path, same(values), ("a", "b"))
    assert numbers.center == (200, 1)
    assert numbers.spread == pytest.approx((100, 0.408248))
    np.testing.assert_allclose(numbers.predictions(logits), [[200, 1.816497]], rtol=1e-6)
    drawn = numbers.scaled_to(labels["train"][:1])
    assert (drawn.center, drawn.spread) == ((100, 0.5), (1, 1))
    assert classes.scaled_to(np.array([0, 1])) is classes


def test_scores_are_means_over_columns(tmp_path):
    values = {"a": [1.0, 2.0, 4.5, None], "b": [0.5, None, 1.5, None]}
    target, labels, _ = read(tmp_path, same(values), ("a", "b"))
    p = np.array([[1.0, 1], [3, 1], [2, 0], [9, 9]])
    ours, each = target.score(labels["dev"], p), regression_metrics(labels["dev"], p)
    assert ours == pytest.approx(
        {name: values.mean() for name, values in each.items()} | {"n": 3, "left_out": 0}
    )
    assert target.score_each(labels["dev"], p)["b"]["mse"] == pytest.approx(each["mse"][1])
    constant = target.score(labels["dev"], np.c_[p[:, 0], np.ones(4)])
    assert constant["left_out"] == 1
    assert constant["pearson"] == pytest.approx(each["pearson"][0])
    nothing = target.score(labels["dev"], np.ones((4, 2)))
    assert math.isnan(nothing["pearson"])
    assert nothing["left_out"] == 2


def test_scores_of_classes_and_of_bases(tmp_path):
    classes, labels, _ = read(tmp_path, same(["a", "b", "b"]))
    p = np.array([[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]])
    assert classes.score(labels["dev"], p) == classification_metrics(labels["dev"], p)
    assert classes.score_each(labels["dev"], p) == {}
    bases, labels, _ = read(tmp_path, same(["0000100002", "0000100000", None]))
    p = list(np.random.default_rng(0).dirichlet([1, 1, 1], (3, 10)))
    ours, each = bases.score(labels["dev"], p), per_base_metrics(labels["dev"], p)
    assert ours["top_k"] == pytest.approx(each["top_k"].mean())
    assert ours["n"] == 2
    assert bases.score_each(labels["dev"], p)["2"]["auprc"] == pytest.approx(each["auprc"][1])
    stacked = np.empty(3, dtype=object)
    for k, row in enumerate(labels["dev"]):
        stacked[k] = row
    assert bases.score(stacked, p) == ours


def test_classes_of_another_split_must_be_those_of_train(tmp_path):
    found = complaints(tmp_path, {"train": ["a", "b"], "dev": ["a", "c"], "test": ["a", "b"]})
    assert found == [
        "dev.csv line 3: label 'c' is not usable; the classes are a, b",
    ]
    # Number 1 lies between the numbers of train, but has no row there.
    splits = {"train": [0, 2, 3, 0], "dev": [0, 1, 2, 3], "test": [2, 0, 2, 3]}
    assert complaints(tmp_path, splits, kind="classes") == [
        "dev.csv line 3: label 1 is in no training row; add such rows to the training table, or "
        "drop these"
    ]


def test_classes_without_a_row_are_said(tmp_path):
    _, _, notes = read(tmp_path, {"train": [0, 1, 2, 4], "dev": [0, 1, 2, 4], "test": [0, 4]})
    assert notes == [
        "train.csv: no label is of class 3; it cannot be learnt",
        "test.csv: no label is of class 1, 2; it is left out of means",
    ]


def test_problems_of_all_splits_come_at_once(tmp_path):
    splits = {"train": ["a", None, "b"], "dev": ["a", "a"], "test": ["a", None]}
    assert [line.split(";")[0] for line in complaints(tmp_path, splits, kind="classes")] == [
        "train.csv line 3: the label is missing",
        "dev.csv: column 'label' has one class only (a)",
        "test.csv line 3: the label is missing",
        "test.csv: column 'label' has one class only (a)",
    ]


def test_counts_are_no_class_numbers(tmp_path):
    assert complaints(tmp_path, same([0, 17, 1_000_000, 250]))[0] == (
        "train.csv: column 'label' has 4 classes, numbered up to 1,000,000; number them from 0 "
        "without gaps, or pass --target regression for numbers"
    )
    target, _, _ = read(tmp_path, same([0, 17, 1_000_000, 250]), kind="regression")
    assert target.kind == "regression"


@pytest.mark.parametrize(
    ("kind", "values", "lines"),
    [
        (
            "regression",
            ["1", "x", "inf", "1e300", None, "2"],
            [
                "line 3: label 'x' is no number; leave a missing label empty",
                "line 4: label inf is infinite; leave a missing label empty",
                "line 5: label 1e300 is infinite; leave a missing label empty",
            ],
        ),
        (
            "fraction",
            [0.5, 80, 1.7],
            [
                "line 3: label 80.0 is outside [0, 1]; percent values? divide them by 100",
                "line 4: label 1.7 is outside [0, 1]; percent values? divide them by 100",
            ],
        ),
        (
            "fraction",
            [0.5, -1, 0.1],
            ["line 3: label -1.0 is outside [0, 1]; or pass --target regression"],
        ),
        (
            "multilabel",
            [0, 1, 2],
            [
                "line 4: label 2 is neither 0 nor 1; write 1 for yes and 0 for no, or pass "
                "--target regression for numbers"
            ],
        ),
        ("classes", [0, 1, 0.5], ["line 4: label '0.5' is not usable; use integers from 0"]),
        (
            "per_base",
            ["0000100000", "000010000", "00001-0000"],
            [
                "line 3: has labels of 9 bases for 10; write one character a base",
                "line 4: '-' at base 6 is no class of the training table; '.' is a base without "
                "a label",
            ],
        ),
    ],
)
def test_values_that_a_kind_cannot_have(tmp_path, kind, values, lines):
    good = {"fraction": [0.5, 0.1], "per_base": ["0000100000"] * 2}.get(kind, [0, 1])
    found = complaints(tmp_path, {"train": values, "dev": good, "test": good}, kind=kind)
    assert found == [f"train.csv {line}" for line in lines]


def test_ten_thousand_wrong_rows_are_counted(tmp_path):
    values = {"a": [0.5, 0.1] + [1.5] * 10_000, "b": [0.5, 0.1] + [0.2] * 9_999 + [3]}
    found = complaints(tmp_path, same(values), ("a", "b"), kind="fraction")
    assert len(found) == 18
    assert found[0].startswith("train.csv line 4: a 1.5 is outside [0, 1]")
    assert found[5] == "train.csv: the same holds for 9,995 more (10,000 in all)"


def test_columns_of_which_nothing_can_be_learnt(tmp_path):
    values = {"a": [0.5, 1.5], "b": [None, None], "c": [2, 2], "d": [2, 2]}
    train = {"train": values, "dev": {k: [1.5, 0] for k in "abcd"}}
    assert complaints(tmp_path, train, ("[a-d]",), kind="regression") == [
        "train.csv: column 'b': no label at all; leave it out of --label",
        "train.csv: 2 columns (c, d): fewer than two different labels; leave it out of --label",
    ]
    assert complaints(tmp_path, same([1, 1]), kind="multilabel")[0] == (
        "train.csv: column 'label': fewer than two different labels; leave it out of --label"
    )


def test_columns_of_which_nothing_can_be_measured(tmp_path):
    good = {"a": [0, 1], "b": [1, 0]}
    flat = {"a": [0, 0], "b": [1, None]}
    one = {"a": [0, 0], "b": [1, 0]}
    assert complaints(tmp_path, {"train": good, "dev": flat, "test": one}, ("a", "b"))[0] == (
        "dev.csv: 2 columns (a, b): fewer than two different labels; they are needed to measure "
        "anything"
    )
    _, _, notes = read(tmp_path, {"train": one, "dev": one, "test": good}, ("a", "b"))
    assert notes == [
        "train.csv: column 'a': fewer than two different labels; nothing is learnt there",
        "dev.csv: column 'a': fewer than two different labels; left out of means over columns",
    ]


def test_bases_need_other_classes_than_the_background(tmp_path):
    splits = {"train": ["0010000000"], "dev": ["0000000000"], "test": ["0020000000"]}
    assert complaints(tmp_path, splits, kind="per_base") == [
        "test.csv line 2: '2' at base 3 is no class of the training table; '.' is a base without "
        "a label",
        "dev.csv: column 'label' has no base of a class but 0; others are needed to learn or to "
        "measure anything",
        "test.csv: column 'label' has no base of a class but 0; others are needed to learn or to "
        "measure anything",
    ]
    numbers = complaints(tmp_path, same([1000, 2]), kind="per_base", verbatim=False)
    assert numbers[0] == (
        "train.csv: column 'label' holds numbers, not one character a base; write it as text"
    )


def test_a_row_of_another_length_does_not_hide_that_bases_are_labelled(tmp_path):
    found = complaints(tmp_path, same(["0010000000", "0010000001", "001"]))
    assert found[0] == (
        "train.csv line 4: has labels of 3 bases for 10; write one character a base"
    )


def test_names_as_long_as_a_sequence_are_no_bases(tmp_path):
    assert read(tmp_path, same(["yes", "no!"]), length=3)[0].kind == "classes"
    assert read(tmp_path, same([0.1234, 0.5678]), length=6)[0].kind == "fraction"


def test_several_columns_are_no_classes(tmp_path):
    values = {"a": ["x", "y"], "b": [0, 1]}
    assert complaints(tmp_path, same(values), ("a", "b"), kind="classes") == [
        "train.csv: --target classes takes one label column, not a, b; name one, or another target"
    ]
    assert complaints(tmp_path, same(values), ("a", "b"))[0] == (
        "train.csv line 2: a 'x' is no number; leave a missing label empty"
    )


def test_a_slip_among_fractions_is_said(tmp_path):
    target, _, notes = read(tmp_path, same([0.5] * 150 + [0.25] * 150 + [1.7]))
    assert target.kind == "regression"
    assert notes == [
        "train.csv: 1 of 301 labels lie outside [0, 1]: read as regression; --target fraction "
        "names their rows"
    ]


def test_parquet_columns_of_any_type(tmp_path):
    frame = pd.DataFrame(
        {
            "a": pd.array([1, None, 0], dtype="Int64"),
            "b": [True, False, True],
            "c": np.array([0, 1, np.nan], dtype=np.float32),
            "d": [None, "1", "0"],
        }
    )
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    target, labels = read_target(
        {"train": read_table(path)},
        ("*",),
        kind=None,
        paths={"train": Path(path)},
        lengths={"train": np.full(3, 9)},
        notes=[],
    )
    assert target.kind == "multilabel"
    np.testing.assert_array_equal(labels["train"], [[1, 1, 0, NAN], [NAN, 0, 1, 1], [0, 1, NAN, 0]])
