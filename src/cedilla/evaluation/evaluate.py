"""Score predictions: metrics with intervals, spread over seeds, and the difference to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.evaluation.confidence import (
    block_bootstrap,
    paired_block_bootstrap,
    smallest_detectable,
)
from cedilla.evaluation.predictions import Predictions, pair, read_predictions
from cedilla.metrics.classification import METRICS, classification_metrics
from cedilla.progress import track
from cedilla.run_directory import Run

# Below this many seeds a standard deviation says nothing about the next seed.
SEEDS_FOR_SPREAD = 3
FEWEST_DRAWS = 100


def evaluate(
    predictions: Path,
    *,
    against: Path | None = None,
    threshold: float = 0.5,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Score a file of predictions, with intervals, and compare it with another one.

    Every arm and split in the file is scored apart. With several seeds the metrics are their
    means. The intervals come from resampling rows, or whole blocks of the genome where there is
    a column `block`; the spread over seeds is another thing and stands beside them, from three
    seeds up.

    Parameters
    ----------
    predictions:
        Parquet, CSV or TSV with the columns id, label and probability (of class 1), or
        probability_0, probability_1, … for more classes; optionally split, arm, seed and block.
    against:
        Predictions for the same ids; the differences are `predictions` minus these, both scored
        on the same resampled rows.
    threshold:
        The probability from which on a row is called class 1. Choose it on dev rows.
    level:
        Of the confidence intervals.
    draws:
        How many times the rows or blocks are resampled.
    seed:
        Of the resampling.
    out:
        A run directory for `metrics.json`; without one the result is only printed.
    resume:
        Take up an interrupted run in `out`; a complete one is read, not repeated.

    Returns
    -------
    dict
        For each set (split, or arm and split; `all` where the file names neither) its metrics, as
        in ``result["test"]["mcc"]``; `intervals`, `seeds` and `sd` by set and metric, `resampled`
        by set, and a list `differences`.

    Raises
    ------
    InputError
        With every problem of the settings and of both files.

    Examples
    --------
    cedilla evaluate runs/beta/predictions/test.parquet
    --against runs/sequence/predictions/test.parquet --out runs/beta-or-not
    """
    settings = dict(locals())
    problems = _check_settings(threshold, level, draws)
    files = {"predictions": predictions} | ({} if against is None else {"against": against})
    read = {role: _read(path, problems) for role, path in files.items()}
    stop_on_errors(problems)
    ours = read["predictions"]
    pairs = pair(ours, read["against"]) if "against" in read else []

    run = None if out is None else Run.start(out, verb="evaluate", config=settings, resume=resume)
    if run is not None and run.complete:
        return run.metrics
    result = _score(ours, settings)
    result["differences"] = [row for a, b in pairs for row in _differences(a, b, settings)]
    _print(result, list(ours), settings)
    if run is not None:
        for role, path in files.items():
            run.note_data(path, role=role, rows=sum(found.rows for found in read[role].values()))
        run.finish(result)
    return result


def _check_settings(threshold: float, level: float, draws: int) -> list[Problem]:
    rules = [
        (0 <= threshold <= 1, f"--threshold {threshold:g} is outside [0, 1]", "0.5 is usual"),
        (0 < level < 1, f"--level {level:g} is outside (0, 1)", "0.95 is usual"),
        (draws >= FEWEST_DRAWS, f"--draws {draws} are too few", f"{FEWEST_DRAWS} at least"),
    ]
    where = "cedilla evaluate"
    return [Problem(where=where, what=what, mend=mend) for good, what, mend in rules if not good]


def _read(path: Path, problems: list[Problem]) -> dict[str, Predictions]:
    """The sets of a file; what is wrong with it joins `problems`."""
    try:
        return read_predictions(path)
    except InputError as error:
        problems += error.problems
        return {}


def _score(sets: Mapping[str, Predictions], settings: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    shared: dict[str, dict[str, Any]] = {k: {} for k in ("intervals", "seeds", "sd", "resampled")}
    for name, found in track(sets.items(), "resampling", total=len(sets), transient=True):
        each = [
            classification_metrics(found.labels, p, threshold=settings["threshold"])
            for p in found.probabilities
        ]
        seeds = {metric: [scores[metric] for scores in each] for metric in METRICS}
        intervals = block_bootstrap(
            found.labels,
            found.probabilities,
            found.blocks,
            metrics=METRICS,
            threshold=settings["threshold"],
            **_resampling(settings),
        )
        result[name] = each[0] | {metric: float(np.mean(v)) for metric, v in seeds.items()}
        shared["intervals"][name] = {metric: [i.low, i.high] for metric, i in intervals.items()}
        shared["seeds"][name] = seeds
        shared["sd"][name] = {metric: _spread(values) for metric, values in seeds.items()}
        shared["resampled"][name] = found.resampled
    return result | shared


def _resampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("draws", "level", "seed")}


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) >= SEEDS_FOR_SPREAD else None


def _differences(
    ours: Predictions, theirs: Predictions, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    found = paired_block_bootstrap(
        ours.labels,
        ours.probabilities,
        theirs.probabilities,
        ours.blocks,
        metrics=METRICS,
        threshold_a=settings["threshold"],
        threshold_b=settings["threshold"],
        **_resampling(settings),
    )
    return [
        {
            "set": ours.name,
            "against": theirs.name,
            "metric": metric,
            "difference": difference.estimate,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
            "smallest_detectable": smallest_detectable(difference.sd, alpha=1 - settings["level"]),
        }
        for metric, difference in found.items()
    ]


def _print(result: Mapping[str, Any], names: Sequence[str], settings: Mapping[str, Any]) -> None:
    console = Console(markup=False, highlight=False)
    interval = f"{100 * settings['level']:g} % interval"
    for name in names:
        console.print(_heading(result, name, settings["threshold"]), soft_wrap=True)
        console.print(_metrics_table(result, name, interval))
    if result["differences"]:
        title = f"{settings['predictions']} minus {settings['against']}"
        console.print(title, soft_wrap=True)
        console.print(_differences_table(result["differences"], interval))
        console.print("detectable: the true difference that these rows show in 4 of 5 cases")
        compared = {row["set"] for row in result["differences"]}
        if alone := [name for name in names if name not in compared]:
            console.print(f"not compared, because it is in the first file only: {', '.join(alone)}")


def _heading(result: Mapping[str, Any], name: str, threshold: float) -> str:
    metrics, seeds = result[name], len(result["seeds"][name]["mcc"])
    parts = [
        f"{name}: {metrics['n']:,} rows",
        f"prevalence {metrics['prevalence']:.3f}",
        f"threshold {threshold:g}",
        f"{result['resampled'][name]} resampled",
        *([f"mean of {seeds} seeds"] if seeds > 1 else []),
    ]
    return ", ".join(parts)


def _metrics_table(result: Mapping[str, Any], name: str, interval: str) -> Table:
    spread = result["sd"][name]
    with_spread = spread["mcc"] is not None
    table = Table("metric", "value", interval, *(["sd over seeds"] if with_spread else []))
    for metric in METRICS:
        low, high = result["intervals"][name][metric]
        cells = [metric, f"{result[name][metric]:.3f}", f"{low:.3f} to {high:.3f}"]
        table.add_row(*cells, *([f"{spread[metric]:.3f}"] if with_spread else []))
    return table


def _differences_table(differences: Sequence[Mapping[str, Any]], interval: str) -> Table:
    table = Table("set", "metric", "difference", interval, "p", "detectable")
    for row in differences:
        table.add_row(
            row["set"],
            row["metric"],
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            f"{row['p']:.2g}",
            f"{row['smallest_detectable']:.3f}",
        )
    return table
