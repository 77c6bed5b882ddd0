"""What methylation adds: one section for each run of ``compare``, its verdict in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cedilla.report.dot_rows import CONTROLS, METRICS, arm_name, arms_of, methylation
from cedilla.report.look import pictures
from cedilla.report.page import Block, Bullets, Cell, Group, Paragraph, Picture, Section, Table
from cedilla.report.results import Result
from cedilla.report.wording import count, decimal, interval, known_bounds, listed, p_value, signed

SYNTHETIC = (
    "These methylation values are simulated. The section shows whether the machinery finds a "
    "signal that was put there; it is no evidence about biology."
)


def methylation_sections(results: Sequence[Result]) -> list[Section]:
    """Sections for runs of ``compare``, those on measured data first."""
    ordered = sorted(results, key=lambda result: result.synthetic)
    return [
        _section(result, "methylation" if i == 0 else f"methylation_{i + 1}")
        for i, result in enumerate(ordered)
    ]


def _section(result: Result, name: str) -> Section:
    metrics = result.metrics
    verdict = metrics.get("verdict") or {}
    blocks: list[Block] = []
    if result.synthetic:
        blocks.append(Paragraph(text=SYNTHETIC, warning=True))
    blocks += [
        Paragraph(text=_what(metrics, result.run.manifest.get("left_out") or {})),
        _picture(result, name),
        _arms(metrics),
    ]
    if metrics.get("differences"):
        blocks.append(_differences(metrics))
        blocks += [Paragraph(text=text) for text in _controls(metrics)]
    if verdict.get("limits"):
        blocks += [Paragraph(text="What this evidence does not reach:")]
        blocks += [Bullets(items=verdict["limits"])]
    label = metrics.get("label", result.name)
    return Section(
        title=f"Methylation and {label}" + (" (synthetic)" if result.synthetic else ""),
        tag=f"Verdict: {verdict['call']}" if verdict.get("call") else "",
        lead=verdict.get("sentence", ""),
        blocks=blocks,
    )


def _what(metrics: Mapping[str, Any], left_out: Mapping[str, int]) -> str:
    n = metrics.get("n") or {}
    rows = ", ".join(
        f"{count(n[split])} {split}" for split in ("train", "dev", "test") if split in n
    )
    seeds = max((len(_seeds(arm, "auroc")) for arm in metrics["arms"].values()), default=0)
    reasons = [f"{count(n)} rows ({reason})" for reason, n in left_out.items()]
    gone = f" Left out: {listed(reasons)}." if reasons else ""
    return (
        f"Label {metrics.get('label')}, methylation from {metrics.get('beta')}, model "
        f"{metrics.get('model')}; {rows} rows, the same ones in every arm; prevalence "
        f"{decimal(metrics.get('prevalence'))}; {seeds} seed{'s' * (seeds != 1)}.{gone}"
    )


def _picture(result: Result, name: str) -> Picture:
    metrics = result.metrics
    values = [f"{arm_name(a)} {decimal(metrics['arms'][a].get('auroc'))}" for a in arms_of(metrics)]
    about = "Simulated methylation. " if result.synthetic else ""
    return Picture(
        name=name,
        alt=f"{about}Test AUROC by arm: {', '.join(values)}. The tables below hold every number.",
        caption=(
            f"{about}Above, each arm on the test rows with its 95 % bootstrap interval. "
            "Below, paired differences between arms on the same rows; a difference inside the "
            "grey bar is smaller than this number of rows could have shown."
        ),
        images=pictures(partial(methylation, metrics, synthetic=result.synthetic)),
    )


def _arms(metrics: Mapping[str, Any]) -> Table:
    rows = []
    for arm in arms_of(metrics):
        scores = metrics["arms"][arm]
        row = [Cell(arm_name(arm))]
        for metric in METRICS:
            bounds = known_bounds((scores.get("interval") or {}).get(metric))
            row.append(Cell(decimal(scores.get(metric)), interval(bounds)))
        spread = (scores.get("sd") or {}).get("auroc")
        rows.append([*row, Cell(decimal(spread))])
    return Table(
        caption="Arms on the test rows, with 95 % bootstrap intervals; SD is of the AUROC",
        head=["Arm", *METRICS.values(), "SD over seeds"],
        groups=[Group(rows=rows)],
    )


def _differences(metrics: Mapping[str, Any]) -> Table:
    groups = []
    for metric, name in METRICS.items():
        rows = [
            [
                Cell(f"{arm_name(d['arm'])} − {arm_name(d['against'])}"),
                Cell(signed(d["difference"])),
                Cell(_span(d)),
                Cell(p_value(d.get("p"))),
                Cell(decimal(d.get("smallest_detectable"))),
            ]
            for d in metrics["differences"]
            if d["metric"] == metric
        ]
        groups += [Group(name=name, rows=rows)] if rows else []
    return Table(
        caption="Paired differences between arms on the same rows",
        head=["Arms", "Difference", "95 % interval", "p", "Smallest detectable"],
        groups=groups,
    )


def _controls(metrics: Mapping[str, Any]) -> list[str]:
    """Whether the arms that must not gain do not gain."""
    sentences = []
    for d in metrics["differences"]:
        if d["arm"] in CONTROLS and d["against"] == "sequence" and d["metric"] == "auroc":
            calm = d["low"] <= 0 <= d["high"]
            meaning = (
                "the interval holds zero, as a control's should"
                if calm
                else "the interval does not hold zero, which a control's should: look for a leak"
            )
            change = f"{signed(d['difference'])} AUROC ({_span(d)})"
            sentences.append(
                f"Control, {arm_name(d['arm'])} against sequence: {change}; {meaning}."
            )
    return sentences


def _span(d: Mapping[str, Any]) -> str:
    return f"{signed(d['low'])} to {signed(d['high'])}"


def _seeds(arm: Mapping[str, Any], metric: str) -> Sequence[float]:
    return (arm.get("seeds") or {}).get(metric) or ()
