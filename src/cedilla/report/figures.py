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

from cedilla.report.look import Look, blank, title
from cedilla.report.wording import decimal

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The epochs of one run, as logged, and the one whose weights were kept."""

    name: str
    epochs: Sequence[Mapping[str, Any]]
    best: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Test labels ``(n,)`` in {0, 1} and probabilities ``(n,)`` of class 1, with their areas."""

    name: str
    labels: np.ndarray
    probabilities: np.ndarray
    auroc: float | None
    auprc: float | None


def training_history(histories: Sequence[History], look: Look) -> Figure:
    """Loss, and F1 and MCC on dev, by epoch; a line and rings mark the epoch that was kept."""
    n = len(histories)
    figure = blank(look, n * (4.6 if look.narrow else 2.5))
    grid = figure.subplots(2 * n if look.narrow else n, 1 if look.narrow else 2, squeeze=False)
    for history, (losses, scores) in zip(histories, grid.reshape(n, 2), strict=True):
        epochs = history.epochs
        loss = {name: [e.get(f"{name}_loss") for e in epochs] for name in ("train", "dev")}
        score = {
            name: [(e.get("dev") or {}).get(name.lower()) for e in epochs] for name in ("F1", "MCC")
        }
        _by_epoch(losses, loss, history, look)
        _by_epoch(scores, score, history, look)
        losses.set(ylabel="loss", ylim=(0, None))
        scores.set(ylabel="score on dev")
        scores.margins(y=0.2)
        title(losses, textwrap.fill(history.name, 40), look)
    return figure


def _by_epoch(
    axes: Axes, series: Mapping[str, Sequence[float | None]], history: History, look: Look
) -> None:
    at = [event["epoch"] for event in history.epochs]
    if history.best is not None:
        axes.axvline(history.best, color=look.line, linewidth=6, zorder=0)
    for (name, values), color, dashes in zip(series.items(), look.series, DASHES, strict=False):
        known = np.array(values, dtype=float)
        axes.plot(at, known, color=color, linestyle=dashes, marker="o", label=name)
        kept = [i for i, epoch in enumerate(at) if epoch == history.best]
        ring = {"color": color, "markerfacecolor": look.paper, "markeredgewidth": 2}
        axes.plot(np.take(at, kept), known[kept], "o", markersize=9, **ring)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch (band: the one kept)", xlim=(min(at) - 0.4, max(at) + 0.4))
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, handlelength=2.4)


def test_curves(curves: Sequence[Curve], look: Look) -> Figure:
    """ROC and precision–recall of several runs on their test rows."""
    figure = blank(look, (7.2 if look.narrow else 4.0) + 0.24 * len(curves))
    roc, pr = figure.subplots(2 if look.narrow else 1, 1 if look.narrow else 2)
    for curve, color, dashes in zip(curves, look.series, DASHES, strict=False):
        style = {"color": color, "linestyle": dashes}
        false, true, _ = roc_curve(curve.labels, curve.probabilities)
        areas = f"AUROC {decimal(curve.auroc)}, AUPRC {decimal(curve.auprc)}"
        name = textwrap.shorten(curve.name, 26 if look.narrow else 60, placeholder="…")
        roc.plot(false, true, label=f"{name}: {areas}", **style)
        precision, recall, _ = precision_recall_curve(curve.labels, curve.probabilities)
        pr.plot(recall, precision, drawstyle="steps-post", **style)
        pr.axhline(curve.labels.mean(), color=look.muted, linewidth=0.9, linestyle=":")
    roc.plot([0, 1], [0, 1], color=look.muted, linewidth=0.9, linestyle=":")
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    pr.set(xlabel="recall", ylabel="precision")
    title(roc, "ROC", look)
    title(pr, "Precision–recall", look)
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid()
    figure.legend(loc="outside lower left", handlelength=3)
    return figure
