"""Figures of labelled rows with a dot and an interval each: benchmarks, arms, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cedilla.report.look import Look, blank, title

METRICS = {"auroc": "AUROC", "auprc": "AUPRC", "mcc": "MCC"}
ARMS = (
    "sequence",
    "beta",
    "sequence+beta",
    "sequence+annotation",
    "sequence+annotation+beta",
    "shuffled",
    "missing",
)
CONTROLS = ("shuffled", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One model's score on a benchmark's test set; published scores have no interval."""

    model: str
    value: float
    bounds: Sequence[float] | None
    kind: Literal["ours", "baseline", "published"]
    comparable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One task of a benchmark, its scores from best to worst."""

    task: str
    metric: str
    scores: Sequence[Score]


def gue_benchmark(panels: Sequence[Panel], look: Look) -> Figure:
    """Each task's models in order of their score; our intervals continue as faint bands."""
    heights = [len(panel.scores) * _row_height(look) + 0.75 for panel in panels]
    figure = blank(look, sum(heights) + 0.75)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        _rows(axes, [score.model for score in panel.scores], look)
        for row, score in enumerate(panel.scores):
            _score(axes, row, score, look)
        axes.set_xlabel(f"test {panel.metric}")
        title(axes, panel.task, look)
    _key(figure, panels, look)
    return figure


def _score(axes: Axes, row: int, score: Score, look: Look) -> None:
    ours = score.kind == "ours"
    color = look.series[0] if ours else look.ink if score.comparable else look.muted
    marker = {"ours": "o", "baseline": "s", "published": "D"}[score.kind]
    if score.bounds:
        axes.hlines(row, *score.bounds, color=color, linewidth=2)
        if ours:
            axes.axvspan(*score.bounds, color=color, alpha=0.1, linewidth=0, zorder=0)
    if not score.comparable:
        hatch = {"facecolor": "none", "edgecolor": look.line, "hatch": "////", "linewidth": 0}
        axes.axhspan(row - 0.5, row + 0.5, zorder=0, **hatch)
    filled = score.kind != "published" and score.comparable
    axes.plot(score.value, row, marker, color=color, mfc=color if filled else look.paper, mew=1.5)
    if not look.narrow and ours:
        axes.get_yticklabels()[row].set(color=color, fontweight="bold")


def _key(figure: Figure, panels: Sequence[Panel], look: Look) -> None:
    scores = [score for panel in panels for score in panel.scores]
    dot = {"linestyle": "none", "markeredgewidth": 1.5}
    blue, ink = look.series[0], look.ink
    marks: dict[str, Line2D | Patch] = {
        "ours": Line2D([], [], marker="o", color=blue, label="Cedilla, 95 % interval", **dot),
        "baseline": Line2D([], [], marker="s", color=ink, label="our baseline", **dot),
        "published": Line2D([], [], marker="D", color=ink, mfc=look.paper, label="published", **dot),
    }
    shown = [mark for kind, mark in marks.items() if any(score.kind == kind for score in scores)]
    if not all(score.comparable for score in scores):
        hatch = {"facecolor": "none", "edgecolor": look.muted, "hatch": "////", "linewidth": 0}
        shown.append(Patch(label="another protocol: not comparable", **hatch))
    figure.legend(handles=shown, loc="outside lower left", ncols=1 if look.narrow else 4)


def methylation(metrics: Mapping[str, Any], look: Look, *, synthetic: bool) -> Figure:
    """Arms with 95 % intervals and seeds, above the paired differences between them."""
    arms, pairs = arms_of(metrics), pairs_of(metrics)
    heights = [len(arms) * _row_height(look) + 0.8, len(pairs) * _row_height(look) + 0.8]
    shape = (6, 1) if look.narrow else (2, 3)
    figure = blank(look, (sum(heights) * (3 if look.narrow else 1)) + 0.7)
    ratios = [height for height in heights for _ in range(shape[0] // 2)]
    grid = figure.subplots(*shape, squeeze=False, height_ratios=ratios).reshape(2, 3)
    for column, metric in enumerate(METRICS):
        _arms(grid[0, column], arms, metrics, metric, look)
        _differences(grid[1, column], pairs, metrics, metric, look)
        if column and not look.narrow:
            for axes in grid[:, column]:
                axes.tick_params(labelleft=False)
    if synthetic:
        figure.suptitle("Synthetic data: no evidence about biology", color=look.series[1], x=0.01, ha="left")
    return figure


def arms_of(metrics: Mapping[str, Any]) -> list[str]:
    """The arms in the order in which they are read, further ones last."""
    known = [arm for arm in ARMS if arm in metrics["arms"]]
    return known + [arm for arm in metrics["arms"] if arm not in ARMS]


def pairs_of(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of arms that were compared, once each, in the order given."""
    return list(dict.fromkeys((d["arm"], d["against"]) for d in metrics.get("differences", ())))


def arm_name(arm: str) -> str:
    """``sequence + beta`` for ``sequence+beta``; controls say what was done to beta."""
    names = {"shuffled": "sequence + shuffled beta", "missing": "sequence + beta missing"}
    return names.get(arm, arm.replace("+", " + "))


def _arms(
    axes: Axes, arms: Sequence[str], metrics: Mapping[str, Any], metric: str, look: Look
) -> None:
    _rows(axes, [arm_name(arm) for arm in arms], look)
    chance = {"auroc": 0.5, "auprc": metrics.get("prevalence"), "mcc": 0.0}[metric]
    if chance is not None:
        axes.axvline(chance, color=look.muted, linewidth=0.9, linestyle=":")
    for row, arm in enumerate(arms):
        scores = metrics["arms"][arm]
        color = look.series[0] if "beta" in arm else look.ink
        seeds = (scores.get("seeds") or {}).get(metric) or []
        if len(seeds) > 1:
            axes.plot(seeds, [row + 0.24] * len(seeds), "o", color=look.muted, markersize=2.5)
        bounds = (scores.get("interval") or {}).get(metric)
        if bounds:
            axes.hlines(row, *bounds, color=color, linewidth=2)
        face = look.paper if arm in CONTROLS else color
        axes.plot(scores.get(metric), row, "o", color=color, mfc=face, mew=1.5)
    axes.set_xlabel({"auprc": "AUPRC (dotted: prevalence)", "auroc": "AUROC (dotted: chance)", "mcc": "MCC"}[metric])
    axes.margins(x=0.08)


def _differences(
    axes: Axes,
    pairs: Sequence[tuple[str, str]],
    metrics: Mapping[str, Any],
    metric: str,
    look: Look,
) -> None:
    _rows(axes, [f"{arm_name(arm)}\n− {arm_name(against)}" for arm, against in pairs], look)
    axes.axvline(0, color=look.muted, linewidth=1)
    for d in metrics.get("differences", ()):
        if d["metric"] != metric:
            continue
        row = pairs.index((d["arm"], d["against"]))
        smallest = d.get("smallest_detectable")
        if smallest is not None:
            axes.barh(row, 2 * smallest, left=-smallest, height=0.62, color=look.band, zorder=0)
        clear = d["low"] > 0 or d["high"] < 0
        color = look.series[0] if clear else look.muted
        axes.hlines(row, d["low"], d["high"], color=color, linewidth=2)
        axes.plot(d["difference"], row, "o", color=color, mfc=color if clear else look.paper, mew=1.5)
    axes.set_xlabel(f"difference in {METRICS[metric]}")


def _rows(axes: Axes, labels: Sequence[str], look: Look) -> None:
    """One row a label, from the top; where space is narrow the labels stand in the rows."""
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_yticks(range(len(labels)), labels=[] if look.narrow else list(labels))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="y", labelcolor=look.ink)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x")
    if look.narrow:
        for row, label in enumerate(labels):
            at = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(0, row - 0.38, label.replace("\n", " "), fontsize=9.5, color=look.ink, **at)


def _row_height(look: Look) -> float:
    return 0.42 if look.narrow else 0.27
