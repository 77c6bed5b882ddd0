"""Benchmarks, arms and differences as rows of dots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from cedilla.report.dot_rows import Panel, Score, arms_of, gue_benchmark, methylation
from cedilla.report.look import Look

LOOK = Look()


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory, compared: Any) -> dict[str, Any]:
    path: Path = tmp_path_factory.mktemp("compare") / "run"
    return dict(compared(path))


def dots(axes: Axes, marker: str = "o") -> list[float]:
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 1]


def test_arms_and_differences_stand_at_their_values(metrics: dict[str, Any]) -> None:
    axes = methylation(metrics, LOOK, synthetic=False).axes
    assert [a.get_title(loc="left") for a in axes[:4]] == [
        "AUROC",
        "AUPRC",
        "MCC",
        "Difference in AUROC",
    ]
    assert dots(axes[0]) == [metrics["arms"][arm]["auroc"] for arm in arms_of(metrics)]
    gains = [d["difference"] for d in metrics["differences"] if d["metric"] == "auroc"]
    assert dots(axes[3]) == gains
    bars = [patch.get_width() for patch in axes[3].patches]
    assert bars == pytest.approx([2 * 0.017] * len(gains))


def test_the_prevalence_stands_under_auprc(metrics: dict[str, Any]) -> None:
    axes = methylation(metrics, LOOK, synthetic=False).axes
    dotted = [line for line in axes[1].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [metrics["prevalence"]]


def test_synthetic_data_is_named_in_the_figure_itself(metrics: dict[str, Any]) -> None:
    assert "Synthetic" in methylation(metrics, LOOK, synthetic=True).get_suptitle()
    assert not methylation(metrics, LOOK, synthetic=False).get_suptitle()


@pytest.mark.parametrize("narrow", [False, True])
def test_a_comparison_without_differences_or_intervals_is_drawn(narrow: bool) -> None:
    bare = {"arms": {"sequence": {"auroc": 0.7}, "beta": {"auroc": 0.8, "mcc": None}}}
    figure = methylation(bare, Look(narrow=narrow), synthetic=False)
    assert len(figure.axes) == 3


def test_further_arms_come_last() -> None:
    assert arms_of({"arms": {"mine": {}, "beta": {}, "sequence": {}}}) == [
        "sequence",
        "beta",
        "mine",
    ]


def test_a_benchmark_tells_ours_published_and_incomparable_apart() -> None:
    ours = Score(model="mini", value=0.6, bounds=(0.5, 0.7), kind="ours", comparable=True)
    cnn = Score(model="cnn", value=0.65, bounds=(0.6, 0.7), kind="baseline", comparable=True)
    known = Score(model="DNABERT-2", value=0.69, bounds=None, kind="published", comparable=True)
    other = Score(model="else", value=0.5, bounds=None, kind="published", comparable=False)
    panel = Panel(task="tf/0", metric="MCC", scores=[known, cnn, ours, other])
    (axes,) = gue_benchmark([panel], LOOK).axes
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == [
        "DNABERT-2",
        "cnn",
        "mini",
    ]
    assert dots(axes, "D") == [0.69, 0.5]
    assert dots(axes, "s") == [0.65]
    assert dots(axes, "o") == [0.6]
    assert [patch.get_hatch() for patch in axes.patches if patch.get_hatch()] == ["////"]
    assert to_hex(axes.get_yticklabels()[2].get_color()) == LOOK.series[0]
