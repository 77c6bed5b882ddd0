"""Benchmark tasks: our scores beside published ones and our own baselines, and who is better."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from cedilla.errors import InputError
from cedilla.report.dot_rows import Panel, Score, gue_benchmark
from cedilla.report.finetune_section import bounds_of, doubts, numbered, score_of, scores_table
from cedilla.report.look import pictures
from cedilla.report.page import Block, Bullets, Cell, Group, Paragraph, Picture, Section, Table
from cedilla.report.results import Result
from cedilla.report.wording import count, decimal, interval, listed
from cedilla.tasks.published import published

PANELS_A_FIGURE = 4
BASELINES = ("kmer", "cnn")
YEAST = (
    "The EMP tasks are histone marks of yeast, which has no CpG methylation: nothing here speaks "
    "about methylation."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The scores on one task, and which of them is our model's.

    Of several models of ours, the one that was best on dev stands for all.
    """

    panel: Panel
    ours: Score
    rows: int | None
    runs: Sequence[Result]

    def published(self) -> list[Score]:
        return [score for score in self.panel.scores if score.kind == "published"]

    def baselines(self) -> list[Score]:
        """Those that were trained by the same protocol as our model."""
        rivals = [score for score in self.panel.scores if score.kind == "baseline"]
        return [s for s in rivals if s is not self.ours and s.note == self.ours.note]


def standings(results: Sequence[Result]) -> list[Standing]:
    """One for each benchmark task among fine-tuned runs, in the order of their start."""
    runs: dict[str, list[Result]] = {}
    for result in results:
        if result.metrics.get("task") and result.metrics.get("test"):
            runs.setdefault(str(result.metrics["task"]), []).append(result)
    return [_standing(task, some) for task, some in runs.items()]


def _standing(task: str, runs: Sequence[Result]) -> Standing:
    rows = _published(task)
    metric = str(rows["metric"].iloc[0]) if len(rows) else "mcc"
    known = [_known(row) for row in rows.to_dict("records")]
    own = [_own(result, metric, runs) for result in runs]
    pairs = list(zip(own, runs, strict=True))
    models = [pair for pair in pairs if pair[0].kind == "ours"] or pairs
    ours, run = max(models, key=lambda pair: (pair[1].metrics.get("dev") or {}).get(metric) or -1)
    scores = sorted(known + own, key=lambda score: -score.value)
    name = "macro F1" if metric == "f1" else metric.upper()
    panel = Panel(task=task, metric=name, scores=scores)
    return Standing(panel=panel, ours=ours, rows=run.metrics["test"].get("n"), runs=runs)


def _published(task: str) -> pd.DataFrame:
    """Nothing is published on a task of the user's own."""
    try:
        return published(task)
    except InputError:
        return pd.DataFrame(columns=["metric"])


def _known(row: Mapping[Hashable, object]) -> Score:
    return Score(
        model=str(row["model"]),
        value=float(str(row["value_0to1"])),
        bounds=None,
        kind="published",
        comparable=True,
        note=str(row["protocol"]),
    )


def _own(result: Result, metric: str, among: Sequence[Result]) -> Score:
    label = _label(result)
    twice = sum(_label(other) == label for other in among) > 1
    protocol = result.metrics.get("protocol") or "protocol not recorded"
    return Score(
        model=f"{label} ({result.name})" if twice else label,
        value=score_of(result, metric) or 0.0,
        bounds=bounds_of(result, metric),
        kind="baseline" if _is_baseline(result) else "ours",
        comparable=protocol == "same protocol",
        note=protocol,
    )


def _label(result: Result) -> str:
    if _random(result):
        return f"{result.model}, random weights"
    method = None if _is_baseline(result) else result.metrics.get("method")
    return ", ".join(filter(None, [result.model, method]))


def _is_baseline(result: Result) -> bool:
    return _random(result) or result.model in BASELINES


def _random(result: Result) -> bool:
    return result.config.get("weights") == "random"


def headline(standing: Standing) -> str:
    """Our model on a task, and which published values and baselines of ours are higher."""
    text = f"{_scored(standing)} on {count(standing.rows)} test sequences"
    rivals = standing.published()
    higher = [score for score in rivals if score.value > standing.ours.value]
    if not rivals:
        text += "; nothing published is at hand."
    elif not standing.ours.comparable:
        text += ", not by the published protocol, and so not comparable with published values."
    elif higher:
        text += f"; of {len(rivals)} published values, higher ones: {_named(higher)}."
    else:
        text += f", above all {len(rivals)} published values."
    stronger = [score for score in standing.baselines() if score.value > standing.ours.value]
    return text + (f" Higher among our own baselines: {_named(stronger)}." if stronger else "")


def benchmark_sections(places: Sequence[Standing]) -> list[Section]:
    """One section for all tasks, or none."""
    if not places:
        return []
    panels = [place.panel for place in places]
    chunks = [panels[i : i + PANELS_A_FIGURE] for i in range(0, len(panels), PANELS_A_FIGURE)]
    runs = [result for place in places for result in place.runs]
    blocks: list[Block] = [_picture(chunk, i) for i, chunk in enumerate(chunks)]
    blocks += [Paragraph(text=_comparison(place)) for place in places]
    if any(panel.task.startswith("EMP/") for panel in panels):
        blocks.append(Paragraph(text=YEAST))
    blocks.append(_table(panels))
    if training := _training(panels):
        blocks += [
            Paragraph(text="How the published models were trained:"),
            Bullets(items=training),
        ]
    blocks += [scores_table(runs), *doubts(runs)]
    return [Section(title="Beside published results", lead=_tally(places), blocks=blocks)]


def _tally(places: Sequence[Standing]) -> str:
    """On how many tasks a published value, or a baseline of ours, is higher than our model."""
    fair = [place for place in places if place.ours.comparable and place.published()]
    beaten = sum(place.published()[0].value > place.ours.value for place in fair)
    tested = [place for place in places if place.baselines()]
    outdone = sum(place.baselines()[0].value > place.ours.value for place in tested)
    return (
        f"{len(fair)} of {len(places)} tasks follow the published protocol; a published value is "
        f"higher than ours on {beaten} of these. {len(tested)} of {len(places)} tasks have a "
        f"baseline of our own; it is higher than our model on {outdone} of these."
    )


def _comparison(place: Standing) -> str:
    """Who is better than our model, who is not, and whom it cannot be told from."""
    ours, rivals = place.ours, place.published()
    low, high = ours.bounds or (ours.value, ours.value)
    parts = [f"{_scored(place)}."]
    if rivals and not ours.comparable:
        parts.append(f"By another protocol, and so not comparable: {_named(rivals)}.")
    elif rivals:
        groups = {
            "Published and better": [s for s in rivals if s.value > high],
            "Published and within our interval, so not told apart": [
                s for s in rivals if low <= s.value <= high
            ],
            "Published and lower": [s for s in rivals if s.value < low],
        }
        parts += [f"{what}: {_named(scores)}." for what, scores in groups.items() if scores]
    return " ".join(parts + [_against(ours, baseline) for baseline in place.baselines()])


def _against(ours: Score, baseline: Score) -> str:
    relation = "higher" if baseline.value > ours.value else "lower"
    if ours.bounds and baseline.bounds:
        apart = ours.bounds[0] > baseline.bounds[1] or ours.bounds[1] < baseline.bounds[0]
        relation += ", and the intervals do not overlap" if apart else ", and the intervals overlap"
    return f"Our baseline {baseline.model} with {decimal(baseline.value)} is {relation}."


def _scored(place: Standing) -> str:
    ours, panel = place.ours, place.panel
    within = f" (95 % interval {interval(ours.bounds)})" if ours.bounds else ""
    return f"{panel.task}: {ours.model} reaches {panel.metric} {decimal(ours.value)}{within}"


def _named(scores: Sequence[Score]) -> str:
    return listed([f"{score.model} {decimal(score.value)}" for score in scores])


def _picture(panels: Sequence[Panel], page: int) -> Picture:
    rows = [f"{p.task}, test {p.metric}: {_named(p.scores)}" for p in panels]
    return Picture(
        name=numbered("gue_benchmark", page),
        alt=f"Models by score. {'; '.join(rows)}.",
        caption="Models of each task by their test score. Lines are 95 % bootstrap intervals over "
        "test rows, shaded for our models; published values come without an interval.",
        source=_sources(panels),
        images=pictures(partial(gue_benchmark, panels)),
    )


def _sources(panels: Sequence[Panel]) -> str:
    tables = [_published(panel.task) for panel in panels]
    cited = [f"{r['paper']}, {r['table']}" for t in tables for r in t.to_dict("records")]
    return f"Published values: {'; '.join(dict.fromkeys(cited))}." if cited else ""


def _training(panels: Sequence[Panel]) -> list[str]:
    """How the published models were trained, those of one kind together."""
    models: dict[str, list[str]] = {}
    for score in (score for panel in panels for score in panel.scores if score.kind == "published"):
        if score.model not in models.setdefault(score.note, []):
            models[score.note].append(score.model)
    return [f"{listed(names)}: {how}." for how, names in models.items()]


def _table(panels: Sequence[Panel]) -> Table:
    groups = []
    for panel in panels:
        rows = [
            [
                Cell(score.model),
                Cell(decimal(score.value), interval(score.bounds)),
                Cell({"ours": "Cedilla", "baseline": "our baseline"}.get(score.kind, "published")),
                Cell("yes" if score.comparable else score.note),
            ]
            for score in panel.scores
        ]
        groups.append(Group(name=f"{panel.task}, test {panel.metric}", rows=rows))
    return Table(
        caption="Scores by task, from best to worst",
        head=["Model", "Score", "Whose", "Comparable"],
        groups=groups,
        words=frozenset({0, 2, 3}),
    )
