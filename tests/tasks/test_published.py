"""The published numbers, against the means that the paper prints and the numbers that are wrong."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest

import cedilla
from cedilla.tasks.catalogue import find_task, tasks
from cedilla.tasks.published import comparability, published

DATA = os.environ.get("CEDILLA_DATA")

# Zhou et al. 2023, arXiv:2306.15006v2, Tables 3 (all tasks) and 4 (groups), cut after two digits.
PRINTED_MEANS = {
    "DNABERT (3-mer)": {"": 61.62, "EMP": 49.54, "mouse": 57.73, "prom_300": 84.63, "core": 72.96},
    "NT-500M-human": {"": 55.43},
    "NT-2500M-multi": {
        "": 66.93, "EMP": 58.06, "mouse": 67.01, "tf/": 63.32, "prom_300": 88.14, "core": 71.62,
    },
    "DNABERT-2": {
        "": 66.80, "EMP": 55.98, "mouse": 67.99, "tf/": 70.10, "prom_300": 84.21, "core": 70.52,
    },
    "DNABERT-2♦": {"": 67.77},
}  # fmt: skip
# Lindsey et al. 2025, Table 2, row GUE: over 18 tasks, with MCC on virus/covid, no row here.
MEANS_OF_LINDSEY = {
    "CNN": (0.569, 0.128),
    "GPT-2 (BPE)": (0.614, 0.549),
    "DNABERT-2": (0.699, 0.401),
    "Mamba (BPE)": (0.618, 0.652),
    "NT-v2-500M": (0.587, 0.498),
    "DNABERT": (0.682, 0.389),
    "HyenaDNA": (0.671, 0.620),
    "Mamba": (0.621, 0.576),
    "Caduceus": (0.707, 0.630),
}
# Numbers that circulate as results on these two tasks, and were never published.
WRONG = (0.9605, 96.05, 0.890, 89.0, 0.892, 89.2)


@pytest.fixture(scope="module")
def everything():
    return pd.concat([published(task) for task in tasks()], ignore_index=True)


def value(task, model):
    rows = published(task).set_index("model")
    return rows.loc[model, "value"]


def test_dnabert2_on_the_two_tasks_that_circulate():
    assert value("EMP/H3K4me3", "DNABERT-2") == 36.27
    assert value("prom_core_all", "DNABERT-2") == 69.37


def test_the_best_published_stands_first():
    assert published("EMP/H3K4me3").loc[0, ["model", "value"]].tolist() == ["DNABERT-2♦", 41.20]
    assert published("prom_core_all").loc[0, "value"] == 70.92


@pytest.mark.parametrize("task", ["EMP/H3K4me3", "prom/prom_core_all"])
def test_wrong_numbers_are_not_among_the_published(task):
    rows = published(task)
    assert not rows["value"].isin(WRONG).any()
    assert not rows["value_0to1"].isin(WRONG).any()


def test_wrong_numbers_are_nowhere_in_the_package():
    anywhere = re.compile(r"(?<![\d.])(0?\.9605|96\.05)(?!\d)")
    beside_a_task = re.compile(r"(?<![\d.])(0?\.89[02]|89\.[02])0*(?!\d)")
    for path in Path(cedilla.__file__).parent.rglob("*"):
        if path.suffix not in (".py", ".csv", ".json", ".yaml", ".html", ".md", ".jinja", ".txt"):
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not anywhere.search(line), path
            if "H3K4me3" in line or "prom_core_all" in line:
                assert not beside_a_task.search(line), path


@pytest.mark.parametrize("model", PRINTED_MEANS)
def test_means_equal_the_printed_ones(everything, model):
    rows = everything[everything["model"] == model]
    assert len(rows) == 28
    for group, printed in PRINTED_MEANS[model].items():
        mean = rows.loc[rows["task"].str.contains(group), "value"].mean()
        assert mean == pytest.approx(printed, abs=0.0101), group


@pytest.mark.parametrize("model", MEANS_OF_LINDSEY)
def test_means_equal_those_of_lindsey(everything, model):
    rows = everything[everything["model"] == f"{model} (Lindsey 2025)"]
    assert len(rows) == 17
    printed, covid = MEANS_OF_LINDSEY[model]
    mean = (rows["value_0to1"].sum() + covid) / 18
    assert mean == pytest.approx(printed, abs=0.0011)


def test_the_best_published_on_the_complete_tasks():
    best = {"tf/0": 71.99, "tf/1": 76.06, "tf/2": 70.5, "mouse/0": 64.23, "mouse/2": 84.5}
    best |= {
        "mouse/3": 82.7,
        "prom_core_all": 70.92,
        "prom_core_tata": 78.15,
        "prom_300_tata": 80.4,
    }
    assert {task: published(task).loc[0, "value"] for task in best} == best


def test_every_row_says_where_it_is_from(everything):
    assert not everything.isna().any(axis=None)
    tables = {tuple(pair) for pair in everything[["paper", "table"]].to_numpy()}
    assert tables == {
        ("Zhou et al. 2023, arXiv:2306.15006", "Table 6"),
        (
            "Lindsey et al. 2025, Bioinformatics 41(9), btaf456",
            "Supplementary table of MCC on GUE",
        ),
    }
    assert everything["protocol"].str.startswith("GUE train/dev/test").all()
    assert (everything["value_0to1"] * 100).round(2).equals(everything["value"])
    assert not everything.duplicated(["task", "model"]).any()
    for task, rows in everything.groupby("task"):
        assert set(rows["metric"]) == {find_task(task).metric}


def test_a_task_without_published_results_has_none():
    assert published("hm27").empty
    assert list(published("hm27").columns) == list(published("tf/0").columns)


def test_callers_cannot_change_the_table():
    rows = published("tf/0")
    rows["value"] = 100.0
    assert published("tf/0")["value"].max() < 100


@pytest.mark.parametrize(
    ("task", "trained_on", "rows", "verdict"),
    [
        ("prom_core_all", "train", 47_356, "same protocol"),
        ("prom_core_all", "train", None, "same protocol"),
        ("prom_core_all", "train", 4_000, "different split"),
        ("prom_core_all", "train+dev", 53_276, "different split"),
        ("prom_core_all", "train+dev", None, "different split"),
        ("EMP/H3K4me3", "dev", 3_680, "not comparable"),
        ("EMP/H3K4me3", "own", 29_439, "not comparable"),
        ("prom_core_all", "train+test", 53_276, "not comparable"),
        ("hm27", "train", None, "not comparable"),
    ],
)
def test_comparability(task, trained_on, rows, verdict):
    assert comparability(task, trained_on=trained_on, rows_train=rows) == verdict


@pytest.mark.skipif(DATA is None, reason="CEDILLA_DATA is not set")
def test_equal_to_the_collected_baselines(everything):
    collected = pd.read_csv(Path(DATA) / "baselines" / "baselines_gue.csv")
    both = everything.merge(collected, on=["task", "model"], suffixes=("", "_collected"))
    assert len(both) >= 28 * 3 + 24 + 3
    assert (both["value"] == both["value_collected"]).all()
