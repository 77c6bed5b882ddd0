"""Fine-tune a model of the zoo on labelled sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from rich.table import Table

from cedilla.dna.tables import SequenceTable
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError, Problem, stop_on_errors, unmet
from cedilla.evaluation.confidence import block_bootstrap
from cedilla.metrics.classification import METRICS, classification_metrics
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.heads import Pooling
from cedilla.models.zoo import FROM_SCRATCH, build
from cedilla.progress import console
from cedilla.run_directory import Run
from cedilla.tasks.catalogue import find_task
from cedilla.tasks.published import comparability
from cedilla.training.adapters import (
    LORA_TARGETS,
    LoRA,
    Method,
    Trainable,
    default_learning_rate,
    prepare,
)
from cedilla.training.batches import SequenceData
from cedilla.training.blocks import CPU, activations_kept, prepare_blocks
from cedilla.training.kmer_baseline import predict_with_kmers
from cedilla.training.loop import Finetuner, Schedule, default_epochs
from cedilla.training.splits import Splits, find_files, labels_of, read_splits, take

TRAIN_SCORED = 10_000  # training rows that are predicted in the end, at most


def finetune(
    *,
    train: Path | None = None,
    dev: Path | None = None,
    test: Path | None = None,
    task: str | None = None,
    out: Path,
    model: str = "mini",
    method: Method = "full",
    targets: tuple[str, ...] = LORA_TARGETS,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.1,
    pooling: Pooling | None = None,
    weights: Literal["pretrained", "random"] = "pretrained",
    learning_rate: float | None = None,
    batch_size: int = 64,
    epochs: int | None = None,
    patience: int = 0,
    select: Literal["mcc", "f1", "auroc", "accuracy"] = "mcc",
    strands: bool = True,
    rows: int | None = None,
    sequence: str = "sequence",
    label: str = "label",
    train_on_dev: bool = False,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Fine-tune a model on labelled sequences, and score it on train, dev and test.

    The epoch with the best dev metric is kept; the test set is opened once, at the end. Leaves
    ``metrics.json``, ``predictions/{train,dev,test}.parquet`` and ``checkpoints/`` in `out`. Of
    more than 10,000 training rows, so many are drawn for the prediction.

    Parameters
    ----------
    train, dev, test:
        Tables (CSV, TSV, Parquet, gzip) or FASTA with a sequence and a label column.
    task:
        A task of the catalogue instead, such as prom_core_all; see `cedilla data list`.
    out:
        The run directory.
    model:
        A name of the zoo (see `cedilla models`) or a directory; `cnn` and `kmer` are baselines.
    method:
        What is trained: all weights, LoRA adapters and the head, or the head alone.
    targets:
        Linear layers that get LoRA adapters.
    rank, alpha:
        Of LoRA: the update is alpha / rank · B A.
    dropout:
        In the head and the LoRA adapters.
    pooling:
        Over tokens: the mean, mean and maximum, or the first token as in the published
        classifiers. By default mean and maximum for models over single bases, else the mean.
    weights:
        `random` starts from random weights: the control for what pre-training brings.
    learning_rate:
        Highest rate; by default what suits the method and the model's size.
    batch_size:
        Sequences per step.
    epochs:
        Passes over the training rows, at most; by default as many as make 100,000 rows, but from 3
        to 30.
    patience:
        Stop after this many epochs without a better dev metric; 0 never stops, since the last
        epochs, where the rate falls, are often the best.
    select:
        The dev metric that chooses the epoch.
    strands:
        Train on either strand and average both in prediction.
    rows:
        Use only so many training rows, and dev rows at most, drawn by the seed.
    sequence, label:
        Columns of the tables.
    train_on_dev:
        Where a task's train file cannot be had, train on nine tenths of its dev file; the
        result is marked as not comparable.
    gradient_checkpointing:
        Compute each block again in the backward pass: less memory, more time.
    compile:
        Compile the blocks with torch.compile, which takes a while at the first step.
    data_dir:
        Where to look for a task's files first.
    seed:
        Of everything random.
    resume:
        Go on with an interrupted run in `out`.
    dry_run:
        Check the data, print what would be trained, time and memory, and stop.

    Examples
    --------
    cedilla finetune --train a.csv.gz --dev b.csv.gz --test c.csv.gz --model mini --out runs/a
    """
    settings = dict(locals())
    _check_settings(settings)
    tables = {"train": train, "dev": dev, "test": test}
    files, trained_on = _files(tables, task, data_dir, train_on_dev)
    splits = read_splits(
        files, trained_on=trained_on, sequence=sequence, label=label, rows=rows, seed=seed
    )
    scored = _scored(splits, seed)
    for note in splits.notes:
        console.print(f"note: {note}")
    plan, data = None, {}  # k-mers need neither
    if model != "kmer":
        torch.manual_seed(seed)
        plan = _plan(
            splits,
            model,
            random=weights == "random",
            method=method,
            lora=LoRA(targets=tuple(targets), rank=rank, alpha=alpha, dropout=dropout),
            pooling=pooling,
            schedule=Schedule(
                epochs=epochs or default_epochs(len(splits.train)),
                batch_size=batch_size,
                learning_rate=learning_rate or 0.0,
                patience=patience,
                select=select,
                seed=seed,
                strands=strands,
            ),
        )
        data = _data(splits, plan.tokenizer)
    encoder, device = (plan.classifier.encoder, plan.device) if plan else (None, CPU)
    prepare_blocks(encoder, device, checkpointing=gradient_checkpointing, compiled=compile)
    if dry_run:
        console.print(_estimate(splits, data, plan))
        return out
    settings["learning_rate"] = plan.schedule.learning_rate if plan else None
    settings["epochs"] = plan.schedule.epochs if plan else None
    run = Run.start(out, verb="finetune", config=settings, resume=resume)
    if run.complete:
        console.print(f"{out} is complete")
        return out
    for split, path in files.items():
        run.note_data(path, role=split, rows=len(dict(splits)[split]))
    run.note(task=task, seed=seed, trained_on=trained_on, counts=_counts(splits))
    facts: dict[str, Any] = {"model": str(model), "task": find_task(task).name if task else None}
    facts["protocol"] = (
        comparability(task, trained_on=trained_on, rows_train=len(splits.train)) if task else None
    )
    if plan is None:
        probabilities, more = predict_with_kmers(splits, scored, seed)
    else:
        run.note(trainable=str(plan.trainable), device=str(plan.device))
        probabilities, more = _fit(run, data, _data(scored, plan.tokenizer), plan)
    _finish(run, scored, probabilities, facts | more, seed)
    return out


def _scored(splits: Splits, seed: int) -> Splits:
    """What is predicted in the end: of many training rows a part, drawn by the seed, says enough
    about over-fitting."""
    n = len(splits.train)
    if n <= TRAIN_SCORED:
        return splits
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:TRAIN_SCORED])
    return replace(splits, train=take(splits.train, rows))


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise :class:`InputError` with every setting that no training can have."""
    least = {"epochs": 1, "batch_size": 1, "patience": 0, "rank": 1, "rows": 2}
    rules = [
        (settings[name] is None or settings[name] >= n, name, f"{n} at least")
        for name, n in least.items()
    ]
    rate = settings["learning_rate"]
    rules += [
        (rate is None or rate > 0, "learning_rate", "above 0"),
        (0 <= settings["dropout"] < 1, "dropout", "from 0 to below 1"),
    ]
    named = ((good, f"{name} {settings[name]} is impossible", mend) for good, name, mend in rules)
    stop_on_errors(unmet("cedilla finetune", named))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A model that is ready to be trained."""

    classifier: SequenceClassifier
    tokenizer: Tokenizer
    trainable: Trainable
    schedule: Schedule
    device: torch.device
    method: Method


def _files(
    given: dict[str, Path | None], task: str | None, data_dir: Path | None, train_on_dev: bool
) -> tuple[dict[str, Path], str]:
    named = {split: Path(path) for split, path in given.items() if path is not None}
    if task and named:
        raise InputError.one("finetune", "--task and tables exclude each other", "give one")
    if task:
        return find_files(task, data_dir=data_dir, train_on_dev=train_on_dev)
    missing = [f"--{split}" for split in given if split not in named]
    if missing:
        raise InputError.one(
            "finetune", f"{', '.join(missing)} not given", "give three tables, or --task"
        )
    return named, "train"


def _plan(
    splits: Splits,
    name: str,
    *,
    random: bool,
    method: Method,
    lora: LoRA,
    pooling: Pooling | None,
    schedule: Schedule,
) -> _Plan:
    encoder = build(name)
    if random and name not in FROM_SCRATCH:
        encoder.initialise()  # type: ignore[operator]
    size = sum(p.numel() for p in encoder.parameters())
    if name in FROM_SCRATCH and method != "full":
        raise InputError.one(f"model {name!r}", "has no trained weights", "use --method full")
    if not schedule.learning_rate:
        rate = default_learning_rate(method, size, baseline=name in FROM_SCRATCH)
        schedule = replace(schedule, learning_rate=rate)
    outputs = max(2, splits.classes)
    classifier = SequenceClassifier(encoder, outputs, pooling=pooling, dropout=lora.dropout)
    return _Plan(
        classifier=classifier,
        tokenizer=Tokenizer.for_model(encoder),
        trainable=prepare(classifier, method, lora),
        schedule=schedule,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        method=method,
    )


def _data(splits: Splits, tokenizer: Tokenizer) -> dict[str, SequenceData]:
    """Every split, tokenized; raises :class:`InputError` with the long sequences of all files."""
    data: dict[str, SequenceData] = {}
    problems: list[Problem] = []
    for split, table in splits:
        record = table.frame.attrs["record"]
        names = [f"{table.path} {record} {number}" for number in table.frame.index]
        try:
            data[split] = SequenceData(table.sequences, labels_of(table), tokenizer, names=names)
        except InputError as error:
            problems += error.problems
    stop_on_errors(problems)
    return data


def _fit(
    run: Run, data: dict[str, SequenceData], scored: dict[str, SequenceData], plan: _Plan
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Train, then predict every split with the best weights."""
    trainer = Finetuner(plan.classifier, plan.schedule, plan.device)
    console.print(f"training {plan.trainable}")
    best = trainer.fit(run, data["train"], data["dev"])
    probabilities = {split: trainer.predict(rows, split) for split, rows in scored.items()}
    return probabilities, {
        "method": plan.method,
        "trainable": plan.trainable.trainable,
        "parameters": plan.trainable.total,
        "best_epoch": best["epoch"],
        "epochs": len([e for e in run.events() if e["event"] == "epoch"]),
    }


def _finish(
    run: Run,
    splits: Splits,
    probabilities: dict[str, np.ndarray],
    facts: dict[str, Any],
    seed: int,
) -> None:
    """Write the predictions, then the numbers that follow from them."""
    metrics: dict[str, Any] = {}
    for split, table in splits:
        run.write_predictions(split, _predictions(table, probabilities[split], split, seed))
        metrics[split] = classification_metrics(labels_of(table), probabilities[split])
    intervals = block_bootstrap(
        labels_of(splits.test), probabilities["test"], None, metrics=METRICS
    )
    metrics["intervals"] = {"test": {n: [i.low, i.high] for n, i in intervals.items()}}
    run.finish(metrics | facts)
    console.print(_table(metrics))
    console.print(f"results in {run.path}")


def _predictions(
    table: SequenceTable, probabilities: np.ndarray, split: str, seed: int
) -> pd.DataFrame:
    frame = pd.DataFrame({"id": table.ids, "label": table.labels})
    if probabilities.shape[1] == 2:
        frame["probability"] = probabilities[:, 1]
    else:
        for i, column in enumerate(probabilities.T):
            frame[f"probability_{i}"] = column
    return frame.assign(split=split, seed=seed, group=None, block=None)


def _counts(splits: Splits) -> dict[str, dict[str, int]]:
    """Rows of each class in each split."""
    return {
        split: {str(c): int((labels_of(table) == c).sum()) for c in range(max(2, splits.classes))}
        for split, table in splits
    }


def _table(metrics: dict[str, Any]) -> Table:
    table = Table()
    for column in ("", *METRICS):
        table.add_column(column, justify="right" if column else "left")
    for split in ("train", "dev", "test"):
        table.add_row(split, *(f"{metrics[split][name]:.3f}" for name in METRICS))
    return table


def _estimate(splits: Splits, data: dict[str, SequenceData], plan: _Plan | None) -> str:
    """What a run would do: rows, parameters, and time from three real steps."""
    rows = ", ".join(f"{len(table):,} {split}" for split, table in splits)
    if plan is None:
        return f"{rows} rows; logistic regression: seconds to minutes"
    schedule = plan.schedule
    few = np.linspace(0, len(splits.train) - 1, 3 * schedule.batch_size).astype(int)
    sample = take(splits.train, np.unique(few))
    seconds = Finetuner(plan.classifier, schedule, plan.device).seconds_per_row(
        SequenceData(sample.sequences, labels_of(sample), plan.tokenizer)
    )
    train, others = len(splits.train), len(splits.dev) + len(splits.test)
    # A prediction costs a third of a training step, on one strand or both.
    share = (1 + schedule.strands) / 3
    total = seconds * (
        schedule.epochs * (train + share * len(splits.dev)) + share * (train + others)
    )
    tokens = max(data["train"].lengths) * schedule.batch_size
    size = plan.trainable.total * 4 + plan.trainable.trainable * 12
    config: Any = plan.classifier.encoder.config
    memory = size + tokens * config.hidden_size * activations_kept(plan.classifier.encoder) * 4
    return (
        f"{rows} rows; training {plan.trainable}; about {total / 60:.1f} minutes for "
        f"{schedule.epochs} epochs on this {plan.device.type}, "
        f"{memory / 1e9 + 0.5:.1f} GB of memory"
    )
