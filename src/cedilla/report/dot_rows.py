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

from cedilla.report.look import Look, Style, blank, title
from cedilla.report.wording import decimal, known_bounds

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
    """One model's score on a benchmark's test set; published scores have no interval.

    note: how a published model was trained, or which protocol ours followed.
    """

    model: str
    value: float
    bounds: Sequence[float] | None
    kind: Literal["ours", "baseline", "published"]
    comparable: bool
    note: str = ""


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
            at: Style = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.02, row, decimal(score.value), **at)
        axes.set_xlabel(f"test {panel.metric}")
        title(axes, panel.task, look)
    _key(figure, panels, look)
    return figure


def _score(axes: Axes, row: int, score: Score, look: Look) -> None:
    ours = score.kind == "ours"
    color = look.series[0] if ours else look.ink if score.comparable else look.muted
    marker = {"ours": "o", "baseline": "s", "published": "D"}[score.kind]
    if score.bounds:
        low, high = score.bounds
        axes.hlines(row, low, high, color=color, linewidth=2)
        if ours and score.comparable:
            axes.axvspan(low, high, color=color, alpha=0.1, linewidth=0, zorder=0)
    if not score.comparable:
        hatch: Style = {
            "facecolor": "none",
            "edgecolor": look.line,
            "hatch": "////",
            "linewidth": 0,
        }
        axes.axhspan(row - 0.5, row + 0.5, zorder=0, **hatch)
    filled = score.kind != "published" and score.comparable
    axes.plot(score.value, row, marker, color=color, mfc=color if filled else look.paper, mew=1.5)
    if not look.narrow and ours:
        axes.get_yticklabels()[row].set(color=color, fontweight="bold")


def _key(figure: Figure, panels: Sequence[Panel], look: Look) -> None:
    scores = [score for panel in panels for score in panel.scores]
    dot: Style = {"linestyle": "none", "markeredgewidth": 1.5}
    blue, ink = look.series[0], look.ink
    marks: dict[str, Line2D | Patch] = {
        "ours": Line2D([], [], marker="o", color=blue, label="Cedilla, 95 % interval", **dot),
        "baseline": Line2D([], [], marker="s", color=ink, label="our baseline", **dot),
        "published": Line2D(
            [], [], marker="D", color=ink, mfc=look.paper, label="published", **dot
        ),
    }
    shown = [mark for kind, mark in marks.items() if any(score.kind == kind for score in scores)]
    if not all(score.comparable for score in scores):
        hatch: Style = {
            "facecolor": "none",
            "edgecolor": look.muted,
            "hatch": "////",
            "linewidth": 0,
        }
        shown.append(Patch(label="another protocol: not comparable", **hatch))
    figure.legend(handles=shown, loc="outside lower left", ncols=1 if look.narrow else 4)


def methylation(metrics: Mapping[str, Any], look: Look, *, synthetic: bool) -> Figure:
    """Arms with 95 % intervals and seeds, above the paired differences between them."""
    arms, pairs = arms_of(metrics), pairs_of(metrics)
    rows = [len(arms) * _row_height(look), len(pairs) * _row_height(look, lines=2)]
    heights = [height + 0.65 for height in rows if height]
    figure = blank(look, sum(heights) * (3 if look.narrow else 1) + (1.7 if look.narrow else 0.9))
    shape = (3 * len(heights), 1) if look.narrow else (len(heights), 3)
    ratios = [height for height in heights for _ in range(shape[0] // len(heights))]
    grid = figure.subplots(*shape, squeeze=False, height_ratios=ratios).reshape(-1, 3)
    for column, metric in enumerate(METRICS):
        _arms(grid[0, column], arms, metrics, metric, look)
        if pairs:
            _differences(grid[1, column], pairs, metrics, metric, look)
        if column and not look.narrow:
            for axes in grid[:, column]:
                axes.tick_params(labelleft=False)
    if synthetic:
        figure.suptitle(
            "Synthetic data: no evidence about biology",
            **{"x": 0.01, "ha": "left", "fontsize": 10.5, "color": look.series[1]},
        )
    _arms_key(figure, metrics, look)
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
        axes.axvline(chance, color=look.muted, linewidth=1.2, linestyle=":")
    for row, arm in enumerate(arms):
        scores = metrics["arms"][arm]
        color = look.series[0] if "beta" in arm else look.ink
        seeds = (scores.get("seeds") or {}).get(metric) or []
        if len(seeds) > 1:
            axes.plot(seeds, [row + 0.26] * len(seeds), "o", color=look.muted, markersize=2.5)
        bounds = known_bounds((scores.get("interval") or {}).get(metric))
        if bounds:
            axes.hlines(row, bounds[0], bounds[1], color=color, linewidth=2)
        if scores.get(metric) is not None:
            face = look.paper if arm in CONTROLS else color
            axes.plot(scores[metric], row, "o", color=color, mfc=face, mew=1.5)
    title(axes, METRICS[metric], look)


def _differences(
    axes: Axes,
    pairs: Sequence[tuple[str, str]],
    metrics: Mapping[str, Any],
    metric: str,
    look: Look,
) -> None:
    _rows(axes, [f"{arm_name(arm)}\n− {arm_name(against)}" for arm, against in pairs], look)
    axes.axvline(0, color=look.muted, linewidth=1)
    for d in metrics["differences"]:
        if d["metric"] != metric or known_bounds((d["low"], d["high"])) is None:
            continue
        row = pairs.index((d["arm"], d["against"]))
        smallest = d.get("smallest_detectable")
        if smallest is not None:
            axes.barh(row, 2 * smallest, left=-smallest, height=0.6, color=look.band, zorder=0)
        clear = d["low"] > 0 or d["high"] < 0
        color = look.series[0] if clear else look.muted
        axes.hlines(row, d["low"], d["high"], color=color, linewidth=2)
        face = color if clear else look.paper
        axes.plot(d["difference"], row, "o", color=color, mfc=face, mew=1.5)
    low, high = axes.get_xlim()
    # Differences that are all zero would otherwise be shown at the scale of rounding errors.
    axes.set_xlim(min(low, -0.02), max(high, 0.02))
    title(axes, f"Difference in {METRICS[metric]}", look)


def _arms_key(figure: Figure, metrics: Mapping[str, Any], look: Look) -> None:
    blue, ink, muted = look.series[0], look.ink, look.muted
    dot: Style = {"linestyle": "none", "marker": "o", "markeredgewidth": 1.5}
    marks: list[Line2D | Patch] = [
        Line2D([], [], color=ink, label="no beta", **dot),
        Line2D([], [], color=blue, label="reads beta", **dot),
        Line2D([], [], color=ink, mfc=look.paper, label="control", **dot),
        Line2D([], [], color=muted, label="one seed", **dot | {"markersize": 2}),
        Line2D([], [], color=muted, linestyle=":", label="chance, or prevalence"),
    ]
    if metrics.get("differences"):
        marks += [
            Line2D([], [], color=muted, mfc=look.paper, label="interval holds zero", **dot),
            Patch(color=look.band, label="too small to detect"),
        ]
    figure.legend(handles=marks, loc="outside lower left", ncols=2 if look.narrow else 4)


def _rows(axes: Axes, labels: Sequence[str], look: Look) -> None:
    """One row a label, from the top; where space is narrow the labels stand in the rows."""
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.set_yticks(range(len(labels)), labels=[] if look.narrow else list(labels))
    axes.tick_params(axis="y", length=0, labelcolor=look.ink)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")
    axes.use_sticky_edges = False
    axes.margins(x=0.08)
    if look.narrow:
        behind: Style = {"facecolor": look.paper, "linewidth": 0, "pad": 1.5}
        at: Style = {"transform": axes.get_yaxis_transform(), "va": "center", "bbox": behind}
        for row, label in enumerate(labels):
            axes.text(0, row - 0.36, label.replace("\n", " "), fontsize=9.5, **at)


def _row_height(look: Look, *, lines: int = 1) -> float:
    """Inches."""
    return 0.4 if look.narrow else 0.26 if lines == 1 else 0.37
