"""The figures of fine-tuned runs: training histories and test curves; pure functions of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from cedilla.report.look import Look, Style, blank, title
from cedilla.report.wording import decimal

DASHES = ("-", "--", ":", "-.", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The epochs of one run, as logged, and the one whose weights were kept.

    scores: of the dev scores, those that are drawn, and what to call them.
    """

    name: str
    epochs: Sequence[Mapping[str, Any]]
    best: int | None
    scores: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Test labels ``(n,)`` in {0, 1} and probabilities ``(n,)`` of class 1, with their areas."""

    name: str
    labels: np.ndarray
    probabilities: np.ndarray
    auroc: float | None
    auprc: float | None


def training_history(histories: Sequence[History], look: Look) -> Figure:
    """Loss, and two scores on dev, by epoch; a band and rings mark the epoch that was kept."""
    n = len(histories)
    figure = blank(look, n * (4.3 if look.narrow else 2.0) + 0.4)
    grid = figure.subplots(2 * n if look.narrow else n, 1 if look.narrow else 2, squeeze=False)
    for row, (history, (losses, scores)) in enumerate(
        zip(histories, grid.reshape(n, 2), strict=True)
    ):
        events = history.epochs
        loss = {name: [e.get(f"{name}_loss") for e in events] for name in ("train", "dev")}
        score = {
            label: [(e.get("dev") or {}).get(name) for e in events]
            for name, label in history.scores.items()
        }
        _by_epoch(losses, loss, history, look, legend=row == 0 or look.narrow)
        _by_epoch(scores, score, history, look, legend=row == 0 or look.narrow)
        losses.set(ylabel="loss", ylim=(0, None))
        scores.set(ylabel="score on dev")
        title(
            losses, textwrap.shorten(history.name, 36 if look.narrow else 24, placeholder="…"), look
        )
    for axes in grid[-1]:
        axes.set_xlabel("epoch; the band marks the one kept")
    return figure


def _by_epoch(
    axes: Axes,
    series: Mapping[str, Sequence[float | None]],
    history: History,
    look: Look,
    *,
    legend: bool,
) -> None:
    at = [event["epoch"] for event in history.epochs]
    if history.best is not None:
        axes.axvline(history.best, color=look.band, linewidth=9, zorder=0)
    few = len(at) <= 20
    for (name, values), color, dashes in zip(series.items(), look.series, DASHES, strict=False):
        known = np.array(values, dtype=float)
        axes.plot(at, known, dashes, color=color, marker="o" if few else None, label=name)
        kept = [i for i, epoch in enumerate(at) if epoch == history.best]
        ring: Style = {"color": color, "markerfacecolor": look.paper, "markeredgewidth": 2}
        axes.plot(np.take(at, kept), known[kept], "o", markersize=8, **ring)
    axes.grid(axis="y")
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlim(min(at) - 0.4, max(at) + 0.4)
    if legend:
        # Beside a run's name there is room for a key on wide paper only.
        above: Style = {"loc": "lower right", "bbox_to_anchor": (1.03, 0.97), "ncols": 2}
        axes.legend(handlelength=2.6, **({} if look.narrow else above))


def ranking_curves(curves: Sequence[Curve], look: Look) -> Figure:
    """ROC and precision–recall of several runs on their test rows; dotted lines are chance."""
    figure = blank(
        look, (7.4 if look.narrow else 4.35) + (0.4 if look.narrow else 0.2) * len(curves)
    )
    shape = (2, 1) if look.narrow else (1, 2)
    roc, pr = figure.subplots(*shape, squeeze=False).ravel()
    roc.plot([0, 1], [0, 1], ":", color=look.muted, linewidth=1)
    for curve, color, dashes in zip(curves, look.series, DASHES, strict=False):
        style: Style = {"color": color, "linestyle": dashes}
        false, true, _ = roc_curve(curve.labels, curve.probabilities)
        name = textwrap.shorten(curve.name, 40, placeholder="…")
        areas = f"AUROC {decimal(curve.auroc)}, AUPRC {decimal(curve.auprc)}"
        label = f"{name}\n{areas}" if look.narrow else f"{name}:  {areas}"
        roc.plot(false, true, label=label, **style)
        precision, recall, _ = precision_recall_curve(curve.labels, curve.probabilities)
        found = recall > 0
        pr.plot(recall[found], precision[found], drawstyle="steps-post", **style)
        pr.axhline(curve.labels.mean(), color=color, linewidth=1, linestyle=":")
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    pr.set(xlabel="recall", ylabel="precision")
    title(roc, "ROC", look)
    title(pr, "Precision–recall", look)
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid()
    figure.legend(loc="outside lower left", handlelength=3)
    return figure
