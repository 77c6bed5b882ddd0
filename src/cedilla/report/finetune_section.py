"""Fine-tuned runs: scores by split, calls against labels, curves, training histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from cedilla.metrics.classification import classification_metrics
from cedilla.report.figures import Curve, History, ranking_curves, training_history
from cedilla.report.look import pictures
from cedilla.report.methylation_section import SYNTHETIC
from cedilla.report.page import Block, Cell, Group, Paragraph, Picture, Section, Table
from cedilla.report.results import Result
from cedilla.report.wording import count, decimal, interval, known_bounds, listed

COLUMNS = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "mcc": "MCC",
    "auroc": "AUROC",
}
# Of labels that are no classes; a run has those of its kind.
OTHER_COLUMNS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "r2": "R²",
    "mse": "MSE",
    "mae": "MAE",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "top_k": "Top-k accuracy",
    "f1": "F1",
}
CURVES_A_FIGURE = 5
HISTORIES_A_FIGURE = 4
HISTORIES_SHOWN = 12


def finetune_sections(results: Sequence[Result]) -> list[Section]:
    """Scores on measured data, scores on simulated data, and how the training went.

    Runs of a benchmark's task have their scores in the benchmark's section.
    """
    sections = []
    pages = 0
    for synthetic in (False, True):
        own = [result for result in results if not result.metrics.get("task")]
        some = [r for r in own if r.synthetic == synthetic and _classifies(r)]
        if some:
            curves = _curves(some, first=pages)
            pages += len(curves)
            sections.append(_scores(some, curves, synthetic=synthetic))
    others = [result for result in results if not _classifies(result)]
    if others:
        sections.append(_other_scores(others))
    trained = [result for result in results if result.epochs()]
    return sections + ([_training(trained)] if trained else [])


def _scores(results: Sequence[Result], curves: list[Picture], *, synthetic: bool) -> Section:
    blocks: list[Block] = [Paragraph(text=SYNTHETIC, warning=True)] if synthetic else []
    blocks += [scores_table(results), *curves]
    calls = [row for result in results for row in _calls(result)]
    if calls:
        blocks.append(
            Table(
                caption="Calls on the test rows, class 1 where its probability reaches 0.5",
                head=["Run", "True +", "False +", "False −", "True −"],
                groups=[Group(rows=calls)],
            )
        )
    blocks += doubts(results)
    return Section(
        title="Fine-tuned on synthetic methylation" if synthetic else "Fine-tuned models",
        tag="synthetic" if synthetic else "",
        lead=" ".join(score_sentence(result) for result in results[:3]),
        blocks=blocks,
    )


def _classifies(result: Result) -> bool:
    """Whether it gives sequences a class, and not numbers, several labels, or one a base."""
    return bool(result.metrics.get("target", "classes") == "classes")


def _other_scores(results: Sequence[Result]) -> Section:
    """Scores of runs on other labels than classes, a table for each kind of labels."""
    kinds = dict.fromkeys(str(result.metrics["target"]) for result in results)
    tables: list[Block] = []
    for kind in kinds:
        some = [result for result in results if result.metrics["target"] == kind]
        scores = some[0].metrics["dev"]
        columns = {key: label for key, label in OTHER_COLUMNS.items() if key in scores}
        caption = f"{kind.replace('_', ' ').capitalize()}: means over columns or classes"
        tables.append(scores_table(some, columns, caption))
    lead = "Predictions of numbers, of several labels, or of a label a base."
    return Section(title="Fine-tuned on other labels", lead=lead, blocks=tables)


def doubts(results: Sequence[Result]) -> list[Block]:
    """A warning about scores that the predictions beside them do not give."""
    differing = [result.name for result in results if not _reproduced(result)]
    if not differing:
        return []
    text = f"The scores of {listed(differing)} do not follow from the predictions beside them."
    return [Paragraph(text=text, warning=True)]


def score_sentence(result: Result) -> str:
    """What one fine-tuned model reached on its test rows."""
    n = count((result.metrics.get("test") or {}).get("n"))
    who = result.model if result.name == result.model else f"{result.name}: {result.model}"
    if not _classifies(result):
        scores = [
            f"{label} {decimal(score_of(result, key))}" for key, label in _drawn(result).items()
        ]
        return f"{who} reaches test {' and '.join(scores)} on {n} rows."
    bounds = bounds_of(result, "mcc")
    within = f" (95 % interval {interval(bounds)})" if bounds else ""
    mcc, auroc = decimal(score_of(result, "mcc")), decimal(score_of(result, "auroc"))
    return f"{who} reaches test MCC {mcc}{within} and AUROC {auroc} on {n} rows."


def scores_table(
    results: Sequence[Result],
    columns: Mapping[str, str] = COLUMNS,
    caption: str = "Scores by split, on the test rows with 95 % intervals over rows",
) -> Table:
    """All scores of each run, split by split."""
    groups = []
    for result in results:
        rows = []
        for split in ("train", "dev", "test"):
            scores = result.metrics.get(split)
            if scores:
                bounds = {
                    key: bounds_of(result, key) if split == "test" else None for key in columns
                }
                row = [Cell(decimal(scores.get(key)), interval(bounds[key])) for key in columns]
                rows.append([Cell(split), Cell(count(scores.get("n"))), *row])
        groups.append(Group(name=_heading(result), rows=rows))
    return Table(
        caption=caption,
        head=["Split", "Rows", *columns.values()],
        groups=groups,
    )


def _heading(result: Result) -> str:
    metrics = result.metrics
    parts = [result.name, ", ".join(filter(None, [result.model, metrics.get("method")]))]
    prevalence = (metrics.get("test") or {}).get("prevalence")
    if prevalence is not None:
        parts.append(f"prevalence {decimal(prevalence)} in test")
    if metrics.get("trainable"):
        parts.append(f"{count(metrics['trainable'])} of {count(metrics['parameters'])} trained")
    if metrics.get("best_epoch") is not None and metrics.get("epochs"):
        parts.append(f"epoch {metrics['best_epoch']} of {metrics['epochs']} kept")
    return " · ".join(parts)


def _calls(result: Result) -> list[list[Cell]]:
    """Counts of calls against labels, for a run of two classes with predictions."""
    table = result.predictions("test")
    if table is None or "probability" not in table:
        return []
    label, called = table["label"] == 1, table["probability"] >= 0.5
    counts = [(label & called), (~label & called), (label & ~called), (~label & ~called)]
    return [[Cell(result.name), *(Cell(count(mask.sum())) for mask in counts)]]


def _reproduced(result: Result) -> bool:
    """Whether the test scores follow from the test predictions; true where there are none."""
    table = result.predictions("test")
    if table is None or not result.metrics.get("test"):
        return True
    columns = [str(name) for name in table if str(name).startswith("probability")]
    probabilities = table[columns[0]] if len(columns) == 1 else table[columns]
    again = classification_metrics(table["label"], probabilities)
    noted = {key: score_of(result, key) for key in COLUMNS}
    return all(value is None or abs(value - again[key]) < 1e-3 for key, value in noted.items())


def _curves(results: Sequence[Result], *, first: int) -> list[Picture]:
    curves = []
    for result in results:
        table = result.predictions("test")
        if table is not None and "probability" in table and table["label"].nunique() == 2:
            curves.append(
                Curve(
                    name=result.name,
                    labels=table["label"].to_numpy(),
                    probabilities=table["probability"].to_numpy(),
                    auroc=score_of(result, "auroc"),
                    auprc=score_of(result, "auprc"),
                )
            )
    chunks = [curves[i : i + CURVES_A_FIGURE] for i in range(0, len(curves), CURVES_A_FIGURE)]
    return [_curve_picture(chunk, first + i) for i, chunk in enumerate(chunks)]


def _curve_picture(curves: Sequence[Curve], page: int) -> Picture:
    values = [f"{c.name} AUROC {decimal(c.auroc)}, AUPRC {decimal(c.auprc)}" for c in curves]
    return Picture(
        name=numbered("ranking_curves", page),
        alt=f"ROC and precision–recall curves: {'; '.join(values)}.",
        caption="Ranking of the test rows. Dotted: chance, and each run's prevalence.",
        images=pictures(partial(ranking_curves, curves)),
    )


def _training(results: Sequence[Result]) -> Section:
    shown, size = results[:HISTORIES_SHOWN], HISTORIES_A_FIGURE
    chunks = [shown[i : i + size] for i in range(0, len(shown), size)]
    blocks: list[Block] = [_history_picture(chunk, i) for i, chunk in enumerate(chunks)]
    if len(results) > len(shown):
        names = listed([result.name for result in results[len(shown) :]])
        blocks.append(Paragraph(text=f"Not drawn, but in each run's metrics.jsonl: {names}."))
    lead = "Loss and dev scores after every epoch; the weights of one epoch were kept."
    return Section(title="Training history", lead=lead, blocks=blocks)


def _history_picture(results: Sequence[Result], page: int) -> Picture:
    histories = [
        History(
            name=result.name,
            epochs=result.epochs(),
            best=result.metrics.get("best_epoch"),
            scores=_drawn(result),
        )
        for result in results
    ]
    kept = [f"{h.name} kept epoch {h.best} of {len(h.epochs)}" for h in histories]
    return Picture(
        name=numbered("training_history", page),
        alt=f"Loss and dev scores by epoch: {'; '.join(kept)}.",
        caption="Left, loss on train and dev; right, scores on dev. The band and the rings "
        "mark the epoch whose weights were kept.",
        images=pictures(partial(training_history, histories)),
    )


def _drawn(result: Result) -> dict[str, str]:
    """Two dev scores that a history shows, and their names."""
    if _classifies(result):
        return {"f1": "F1", "mcc": "MCC"}
    known = [key for key in OTHER_COLUMNS if key in result.metrics["dev"]]
    return {key: OTHER_COLUMNS[key] for key in known[:2]}


def numbered(stem: str, page: int) -> str:
    """The first figure of a kind has its plain name; further ones are numbered."""
    return stem if page == 0 else f"{stem}_{page + 1}"


def score_of(result: Result, key: str) -> float | None:
    """One score on the test rows."""
    return (result.metrics.get("test") or {}).get(key)


def bounds_of(result: Result, key: str) -> Sequence[float] | None:
    """The 95 % interval of one score on the test rows."""
    return known_bounds(((result.metrics.get("intervals") or {}).get("test") or {}).get(key))
