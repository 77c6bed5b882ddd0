"""Does methylation help beyond sequence? Arms, controls, intervals and a verdict for any table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.table import Table
from scipy.special import expit

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.evaluation.arms import THRESHOLD, Arm, arms, locus_features, pairs
from cedilla.evaluation.confidence import (
    block_bootstrap,
    paired_block_bootstrap,
    smallest_detectable,
)
from cedilla.evaluation.learners import BoostedKmers, FusedNetwork, Learner
from cedilla.evaluation.loci import Loci, read_loci
from cedilla.evaluation.verdict import verdict
from cedilla.files import sha256, whole_file
from cedilla.metrics.classification import best_threshold, classification_metrics
from cedilla.progress import console, progress_bar
from cedilla.run_directory import Run
from cedilla.tasks.catalogue import find_by_hash, find_task
from cedilla.tasks.download import locate

METRICS = ("auroc", "auprc", "mcc")


def compare(
    table: str,
    *,
    out: Path,
    label: str,
    beta: str = "beta",
    sequence: str = "sequence",
    annotation: tuple[str, ...] = (),
    group: str = "chrom",
    dev: tuple[str, ...],
    test: tuple[str, ...],
    drop: tuple[str, ...] = (),
    position: str | None = None,
    block_size: int = 2_000_000,
    model: str = "kmer",
    epochs: int = 3,
    seeds: int = 3,
    rows: int | None = None,
    data_dir: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Compare models with and without methylation, with controls, intervals and a verdict.

    Every arm learns from the same rows, those with a beta. Groups (chromosomes) are kept whole:
    the rest train, `dev` chooses thresholds, `test` is scored once. Arms: sequence, beta alone,
    both, both with annotation, and two controls, shuffled and missing betas.

    Parameters
    ----------
    table:
        A CSV, TSV or Parquet file with a row a locus, or a catalogue name such as hm27.
    out:
        The run directory.
    label:
        Column of the classes 0 and 1.
    beta:
        Column of the locus's methylation, in [0, 1]; empty is not measured.
    sequence:
        Column of the DNA.
    annotation:
        Columns of what else is known of a locus, such as island and distance to the TSS.
    group:
        Column of the chromosome, or of another group that must not be torn apart.
    dev, test, drop:
        Groups for choosing thresholds, for the test, and to leave out.
    position:
        Column of the 0-based position, for bootstrap blocks; found by itself where it is named
        like `group` (chrom_hg19, start_hg19).
    block_size:
        Of the bootstrap's blocks, in bp.
    model:
        `kmer` boosts k-mer counts; a language model (a name of the zoo or a directory), or
        `cnn`, is fine-tuned with the methylation fused in.
    epochs:
        Of fine-tuning.
    seeds:
        How many times every arm is trained.
    rows:
        Train on so many rows only, drawn once.
    data_dir:
        Where to look for the catalogue's table first.
    resume:
        Keep what an interrupted run in `out` has finished.
    dry_run:
        Check the data, print the plan with time and memory, and stop.

    Examples
    --------
    cedilla compare hm27 --sequence seq122 --beta beta_median_sesame450k --label gm12878_H3K4me3
    --group chrom_hg19 --dev chr7,chr10 --test chr8,chr9 --drop chrX,chrY --out runs/h3k4me3
    """
    settings = dict(locals())
    _check_settings(settings)
    path = Path(table) if Path(table).exists() else _from_catalogue(table, data_dir)
    loci = read_loci(
        path,
        columns={"sequence": sequence, "label": label, "beta": beta, "group": group},
        annotation=tuple(annotation),
        dev=tuple(dev),
        test=tuple(test),
        drop=tuple(drop),
        position=position,
        block_size=block_size,
        rows=rows,
    )
    chosen = arms(annotation=bool(annotation))
    learner = _learner(loci, model, epochs)
    if dry_run:
        console.print(_estimate(loci, len(chosen) * seeds, learner))
        return out
    run = Run.start(out, verb="compare", config=settings | {"table": path}, resume=resume)
    if run.complete:
        console.print(f"{out} is complete")
        return out
    run.note_data(path, role="table", rows=loci.read)
    run.note(seeds=list(range(seeds)), counts=loci.counts, left_out=loci.left_out)
    for reason, n in loci.left_out.items():
        console.print(f"left out: {n:,} rows, {reason}")
    scores = _score_all(run, loci, chosen, learner, seeds)
    metrics = summarise(loci, scores, annotation=bool(annotation), seed=0)
    metrics |= {"label": label, "beta": beta, "model": model, "n": loci.counts}
    scope, limits = _known_limits(path, simulated=run.manifest.get("synthetic", False))
    metrics["verdict"] = verdict(
        metrics["differences"],
        metrics["arms"],
        label=label,
        limits=[*_limits(loci, seeds), *limits],
        scope=scope,
    )
    _write_predictions(run, loci, scores)
    run.finish(metrics)
    console.print(_table(metrics))
    console.print(metrics["verdict"]["sentence"])
    console.print(f"results in {run.path}")
    return out


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise :class:`InputError` with every setting that no comparison can have."""
    least = {"seeds": 1, "epochs": 1, "block_size": 1, "rows": 2}
    stop_on_errors(
        Problem(
            where="cedilla compare",
            what=f"{name} {settings[name]} is impossible",
            mend=f"{n} at least",
        )
        for name, n in least.items()
        if settings[name] is not None and settings[name] < n
    )


def _from_catalogue(name: str, data_dir: Path | None) -> Path:
    """The file of a catalogue's table; a name that looks like a file is reported as missing."""
    if "." in Path(name).name:
        raise InputError.one(name, "not found", "name a table, or an entry of the catalogue")
    return locate(find_task(name), "all", data_dir=data_dir)


def _learner(loci: Loci, model: str, epochs: int) -> Learner:
    train, dev = loci.splits == "train", loci.splits == "dev"
    if model == "kmer":
        return BoostedKmers(loci.sequences, loci.labels, train)
    return FusedNetwork(
        loci.sequences,
        loci.labels,
        train,
        dev=dev,
        model=model,
        epochs=epochs,
        names=[f"{loci.record} {number}" for number in loci.ids],
    )


def _score_all(
    run: Run, loci: Loci, chosen: Sequence[Arm], learner: Learner, seeds: int
) -> dict[str, np.ndarray]:
    """Logits (S, N) of every arm. Each cell is kept on disk, so that a resumed run goes on."""
    scores = {arm.name: np.empty((seeds, len(loci.labels))) for arm in chosen}
    with progress_bar() as bar:
        task = bar.add_task("comparing", total=seeds * len(chosen))
        for seed in range(seeds):
            # All arms of a seed see the same shuffle.
            for arm in chosen:
                bar.update(task, description=f"seed {seed}, {arm.name}")
                cell = run.path / "cells" / f"{arm.name}-{seed}"
                if not (cell / "scores.npy").exists():
                    rng = np.random.default_rng((seed, 17))
                    features = locus_features(arm, loci.beta, loci.annotation, loci.splits, rng)
                    values = learner.scores(arm.sequence, features, seed, cell)
                    with whole_file(cell / "scores.npy") as draft:
                        np.save(draft, values)
                scores[arm.name][seed] = np.load(cell / "scores.npy")
                bar.update(task, advance=1)
    # The baseline that learns nothing but a direction: beta itself.
    train = loci.splits == "train"
    means = [loci.beta[train & (loci.labels == c)].mean() for c in (0, 1)]
    scores[THRESHOLD] = np.tile((loci.beta - 0.5) * np.sign(means[1] - means[0]), (seeds, 1))
    return scores


def summarise(
    loci: Loci, scores: dict[str, np.ndarray], *, annotation: bool, seed: int
) -> dict[str, Any]:
    """Metrics of every arm on the test rows, and paired differences; thresholds from dev."""
    dev, test = loci.splits == "dev", loci.splits == "test"
    labels, blocks = loci.labels[test], loci.blocks[test]
    probabilities = {name: expit(values) for name, values in scores.items()}
    thresholds = {
        name: [best_threshold(loci.labels[dev], p[dev]) for p in values]
        for name, values in probabilities.items()
    }
    results = {
        name: _arm_metrics(labels, values[:, test], blocks, thresholds[name], seed)
        for name, values in probabilities.items()
    }
    differences = []
    for arm, against in [*pairs(annotation=annotation), ("beta", THRESHOLD)]:
        found = paired_block_bootstrap(
            labels,
            probabilities[arm][:, test],
            probabilities[against][:, test],
            blocks,
            threshold_a=thresholds[arm],
            threshold_b=thresholds[against],
            seed=seed,
        )
        for metric, difference in found.items():
            differences.append(
                {
                    "arm": arm,
                    "against": against,
                    "metric": metric,
                    "difference": difference.estimate,
                    "low": difference.low,
                    "high": difference.high,
                    "p": difference.p,
                    "smallest_detectable": smallest_detectable(difference.sd),
                }
            )
    return {"prevalence": float(labels.mean()), "arms": results, "differences": differences}


def _arm_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    blocks: np.ndarray,
    thresholds: list[float],
    seed: int,
) -> dict[str, Any]:
    """Means over seeds with their interval over blocks; the spread over seeds apart."""
    intervals = block_bootstrap(labels, probabilities, blocks, threshold=thresholds, seed=seed)
    per_seed = [
        classification_metrics(labels, p, threshold=t)
        for p, t in zip(probabilities, thresholds, strict=True)
    ]
    by_seed = {metric: [values[metric] for values in per_seed] for metric in METRICS}
    enough = len(per_seed) >= 3
    return {
        **{metric: float(np.mean(values)) for metric, values in by_seed.items()},
        "threshold": thresholds,
        "interval": {name: [i.low, i.high] for name, i in intervals.items()},
        "seeds": by_seed,
        "sd": {
            metric: float(np.std(values, ddof=1)) if enough else None
            for metric, values in by_seed.items()
        },
    }


def _limits(loci: Loci, seeds: int) -> list[str]:
    """What the evidence cannot speak for, from the data alone."""
    test = loci.splits == "test"
    names = sorted(set(loci.groups[test]), key=lambda name: (len(name), name))
    blocks = len(set(loci.blocks[test]))
    limits = [
        f"Tested on {int(test.sum()):,} loci of {', '.join(names)}; intervals come from "
        f"{blocks:,} {loci.block_kind}."
    ]
    if seeds < 3:
        limits.append("Fewer than three seeds: nothing is known of the spread over seeds.")
    return limits


def _known_limits(path: Path, *, simulated: bool) -> tuple[str, tuple[str, ...]]:
    """The scope and the limits of a table that Cedilla knows or has made."""
    if simulated:
        return "simulated data", ("The methylation is simulated: no evidence about biology.",)
    known = find_by_hash(sha256(path))
    return (known.scope, known.limits) if known else ("", ())


def _write_predictions(run: Run, loci: Loci, scores: dict[str, np.ndarray]) -> None:
    for split in ("dev", "test"):
        rows = np.flatnonzero(loci.splits == split)
        frames = [
            pd.DataFrame(
                {
                    "id": np.asarray(loci.ids)[rows],
                    "label": loci.labels[rows],
                    "probability": expit(values[rows]),
                    "split": split,
                    "seed": seed,
                    "group": loci.groups[rows],
                    "block": loci.blocks[rows],
                    "arm": arm,
                }
            )
            for arm, per_seed in scores.items()
            for seed, values in enumerate(per_seed)
        ]
        run.write_predictions(split, pd.concat(frames, ignore_index=True))


def _estimate(loci: Loci, cells: int, learner: Learner) -> str:
    """The plan in a sentence; time is measured on a small part of the work."""
    n = loci.counts
    seconds, memory = learner.cost()
    return (
        f"{n['train']:,} train, {n['dev']:,} dev, {n['test']:,} test rows; {cells} models, about "
        f"{seconds * cells / 60:.0f} minutes, {memory:.1f} GB of memory"
    )


def _table(metrics: dict[str, Any]) -> Table:
    prevalence = metrics["prevalence"]
    table = Table(
        title=f"{metrics['label']}: test prevalence {prevalence:.3f}, 95 % intervals",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("arm", no_wrap=True)
    for name in METRICS:
        table.add_column(name, justify="right", no_wrap=True)
    for arm, values in metrics["arms"].items():
        cells = [
            "{:.3f} {:.2f}–{:.2f}".format(values[name], *values["interval"][name])
            for name in METRICS
        ]
        # Without the leading zeros, the row fits a terminal of 80 columns.
        table.add_row(arm, *(re.sub(r"\b0\.", ".", cell) for cell in cells))
    return table
