"""Fine-tune a model of the zoo on labelled sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter
from rich.table import Table

from cedilla.errors import InputError
from cedilla.evaluation.confidence import block_bootstrap
from cedilla.metrics.classification import METRICS
from cedilla.models.heads import Pooling
from cedilla.progress import console
from cedilla.run_directory import Run
from cedilla.tasks.catalogue import find_task
from cedilla.tasks.published import comparability
from cedilla.training.adapters import Method
from cedilla.training.batches import SequenceData
from cedilla.training.blocks import CPU, prepare_blocks
from cedilla.training.calibration import calibrate
from cedilla.training.cost import estimate
from cedilla.training.familiarity import familiarity_of
from cedilla.training.frozen_layers import keep_frozen_outputs
from cedilla.training.kmer_baseline import predict_with_kmers
from cedilla.training.long_sequences import Long
from cedilla.training.loop import LAST, AfterEpoch
from cedilla.training.losses import LossKind
from cedilla.training.model_directory import save_model
from cedilla.training.optimisation import Decay
from cedilla.training.plan import Plan, check, make_data, make_plan
from cedilla.training.predictions import predictions_frame
from cedilla.training.rate_finder import find_rate as search_rate
from cedilla.training.splits import SPLITS, Splits, find_files, labels_of, read_splits, take
from cedilla.training.targets import Kind

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
    targets: tuple[str, ...] | None = None,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.1,
    top_layers: int = 2,
    pooling: Pooling | None = None,
    weights: Literal["pretrained", "random"] = "pretrained",
    learning_rate: float | None = None,
    find_rate: bool = False,
    batch_size: int = 64,
    accumulate: int = 1,
    epochs: int | None = None,
    patience: int = 0,
    select: str = LAST,
    warmup: float = 0.1,
    decay: Decay = "cosine",
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    clip: float = 1.0,
    ema: float = 0.0,
    strands: bool | None = None,
    rows: int | None = None,
    sequence: str = "sequence",
    id: str | None = None,
    label: tuple[str, ...] = ("label",),
    target: Kind | None = None,
    loss: LossKind = "auto",
    label_smoothing: float = 0.0,
    gamma: float = 2.0,
    balanced: bool = False,
    long: Long = "refuse",
    train_on_dev: bool = False,
    dev_only: bool = False,
    cache: bool | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    after_epoch: Annotated[AfterEpoch | None, Parameter(parse=False)] = None,
) -> Path:
    """Fine-tune a model on labelled sequences, and score it on train, dev and test.

    The last epoch is kept, or the best one on dev if a metric is named; the test set is checked
    with the others, and predicted once, at the end. Leaves
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
        What is trained: all weights (full), the head alone, the top blocks, the biases, or
        adapters (LoRA, DoRA, rsLoRA, IA3); the head always.
    targets:
        Layers that get adapters, by the last part of their names; by default those of the method.
    rank, alpha:
        Of LoRA: the update is alpha / rank · B A.
    dropout:
        In the head and the LoRA adapters.
    top_layers:
        Blocks that the method `top` trains.
    pooling:
        Over tokens: the mean, mean and maximum, or the first token as in the published
        classifiers. By default mean and maximum for models over single bases, else the mean.
    weights:
        `random` starts from random weights: the control for what pre-training brings.
    learning_rate:
        Highest rate; by default what suits the method and the model's size.
    find_rate:
        Take a tenth of the rate at which a range test of 100 steps has its lowest loss.
    batch_size:
        Sequences per step.
    accumulate:
        Parts in which a batch is computed, for memory; where memory runs out there will be more.
    epochs:
        Passes over the training rows, at most; by default as many as make 100,000 rows, but from 8
        to 30.
    patience:
        Stop after this many epochs without a better value of the selected metric; 0 never stops.
    select:
        The epoch that is kept: the last, where the rate has fallen, or the one with the best value
        of a dev metric or `loss`. On small dev sets the best value is often a lucky one.
    warmup, decay:
        The rate rises over this share of the training, then falls: cosine, linear or constant.
    weight_decay:
        Of matrices, in AdamW.
    layer_decay:
        Each layer's rate is this times that of the layer above.
    clip:
        Longest gradient.
    ema:
        Decay of an average of the weights that is predicted with, such as 0.995; 0 keeps none.
    strands:
        Train on either strand and average both in prediction; by default yes, but no for labels
        of single bases.
    rows:
        Use only so many training rows, and dev rows at most, drawn by the seed.
    sequence, id:
        Columns of the sequences and of their names, which are their lines where none is named.
    label:
        Column or columns of the labels; a pattern such as 'y_*' stands for many.
    target:
        What the labels are; by default that follows from the columns.
    loss:
        By default what suits the labels.
    label_smoothing:
        Share of each class's probability that is spread over all classes.
    gamma:
        Of the focal loss.
    balanced:
        Weigh classes by how rare they are.
    long:
        Sequences longer than the model takes are refused, cropped to their centre, or cut into
        tiles: one of them a pass in training, the mean over all in prediction.
    train_on_dev:
        Where a task's train file cannot be had, train on nine tenths of its dev file; the
        result is marked as not comparable.
    dev_only:
        Leave the test set closed, as long as settings are being chosen.
    cache:
        Compute the layers below all that is trained once, and keep what they give on disk; by
        default with the methods `head` and `top`.
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
    after_epoch:
        In Python alone: called with each epoch's event; what it raises ends the run.

    Examples
    --------
    cedilla finetune --train a.csv.gz --dev b.csv.gz --test c.csv.gz --model mini --out runs/a
    """
    settings = {name: value for name, value in locals().items() if name != "after_epoch"}
    check(settings)
    files, splits = read_data(settings)
    for note in splits.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if not dry_run or splits.target.kind != "classes":
        console.print(str(splits.target), markup=False)
    plan, data = None, {}  # k-mers need neither
    if model == "kmer":
        _refuse_for_kmers(splits)
        prepare_blocks(None, CPU, checkpointing=gradient_checkpointing, compiled=compile)
    else:
        plan = make_plan(splits, settings)
        data = make_data(splits, plan.tokenizer, long)
    if dry_run:
        console.print(estimate(splits, data, plan).text, soft_wrap=True)
        return out
    settings |= _chosen(plan, find_rate=find_rate)
    run = Run.start(out, verb="finetune", config=settings, resume=resume)
    if run.complete:
        console.print(f"{out} is complete")
        return out
    for split, path in files.items():
        run.note_data(path, role=split, rows=len(dict(splits)[split]))
    run.note(task=task, seed=seed, trained_on=splits.trained_on, counts=_counts(splits))
    facts: dict[str, Any] = {"model": str(model), "task": find_task(task).name if task else None}
    facts["protocol"] = (
        comparability(task, trained_on=splits.trained_on, rows_train=len(splits.train))
        if task
        else None
    )
    scored, save = _scored(splits, seed), None
    if plan is None:
        probabilities, more = predict_with_kmers(splits, scored, seed)
    else:
        run.note(trainable=str(plan.trainable), device=str(plan.device))
        if find_rate:
            plan = _with_found_rate(plan, data["train"], run)
        again = make_data(scored, plan.tokenizer, long)
        probabilities, more, measured = _fit(
            run, data, again, plan, splits=splits, after_epoch=after_epoch
        )
        begun = {"base": str(model), "pretrained": weights == "pretrained", "long": long}
        save = partial(save_model, run.path / "model", plan, splits, **measured | begun)
    _finish(run, scored, probabilities, facts | more, seed=seed, save=save)
    return out


def read_data(settings: Mapping[str, Any]) -> tuple[dict[str, Path], Splits]:
    """The files that the settings of the verb name, and what stands in them."""
    files, trained_on = _files(settings)
    names = ("sequence", "id", "label", "rows", "seed")
    chosen = {name: settings[name] for name in names}
    return files, read_splits(files, trained_on=trained_on, kind=settings["target"], **chosen)


def _files(settings: Mapping[str, Any]) -> tuple[dict[str, Path], str]:
    given = {split: settings[split] for split in SPLITS}
    task, dev_only = settings["task"], settings["dev_only"]
    named = {split: Path(path) for split, path in given.items() if path is not None}
    if task and named:
        raise InputError.one("finetune", "--task and tables exclude each other", "give one")
    if task:
        places = {name: settings[name] for name in ("data_dir", "train_on_dev", "dev_only")}
        return find_files(task, **places)
    wanted = [split for split in given if split != "test" or not dev_only]
    missing = [f"--{split}" for split in wanted if split not in named]
    if missing:
        mend = "give three tables, or --task"
        if missing == ["--test"]:
            mend = "give it, or leave the test set closed with --dev-only"
        raise InputError.one("finetune", f"{', '.join(missing)} not given", mend)
    return {split: named[split] for split in wanted}, "train"


def _refuse_for_kmers(splits: Splits) -> None:
    if splits.target.kind != "classes":
        what = f"learns classes, not {splits.target.kind}"
        raise InputError.one("model 'kmer'", what, "take cnn as the baseline")


def _chosen(plan: Plan | None, *, find_rate: bool) -> dict[str, Any]:
    """The settings that the data and the method chose, for the run's configuration."""
    names = ("learning_rate", "epochs", "strands")
    if plan is None:
        return dict.fromkeys(names[:2])
    chosen = {name: getattr(plan.schedule, name) for name in names}
    return chosen | ({"learning_rate": None} if find_rate else {})


def _scored(splits: Splits, seed: int) -> Splits:
    """What is predicted in the end: of many training rows a part, drawn by the seed, says enough
    about over-fitting."""
    n = len(splits.train)
    if n <= TRAIN_SCORED:
        return splits
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:TRAIN_SCORED])
    return replace(splits, train=take(splits.train, rows))


def _with_found_rate(plan: Plan, train: SequenceData, run: Run) -> Plan:
    """The plan at the rate that a range test finds; a resumed run keeps the one it found."""
    found = [event for event in run.events() if event["event"] == "rate"]
    if not found:
        rate, curve = search_rate(plan.trainer(), train)
        run.log(event="rate", rate=rate, curve=curve)
        found = run.events()[-1:]
    console.print(f"learning rate {found[0]['rate']:.2g}, by a range test")
    return replace(plan, schedule=replace(plan.schedule, learning_rate=found[0]["rate"]))


def _fit(
    run: Run,
    data: dict[str, SequenceData],
    scored: dict[str, SequenceData],
    plan: Plan,
    *,
    splits: Splits,
    after_epoch: AfterEpoch | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train, then predict every split with the best weights; what else the model needs to be used:
    its calibration, and what training rows are like."""
    trainer = plan.trainer()
    select = plan.schedule.select
    kept = "the last epoch" if select == LAST else f"the epoch with the best {select} on dev"
    console.print(f"training {plan.trainable}; keeping {kept}", soft_wrap=True)
    if plan.cached:
        keep_frozen_outputs(plan.classifier.encoder, data.values(), trainer.precision)
    best = trainer.fit(run, data["train"], data["dev"], after_epoch)
    logits = {split: trainer.logits(rows, split) for split, rows in scored.items()}
    predictions = {split: trainer.predictions(found) for split, found in logits.items()}
    facts = {
        "method": plan.method,
        "learning_rate": plan.schedule.learning_rate,
        "trainable": plan.trainable.trainable,
        "parameters": plan.trainable.total,
        "best_epoch": best["epoch"],
        "epochs": len([e for e in run.events() if e["event"] == "epoch"]),
    }
    sequences = {"train": splits.train.sequences, "dev": splits.dev.sequences}
    strands, size = plan.schedule.strands, trainer.at_once
    measured = {
        "calibration": calibrate(plan.target, logits["dev"], labels_of(splits.dev)),
        "familiarity": familiarity_of(
            plan.classifier, scored, sequences, strands=strands, size=size
        ),
    }
    return predictions, facts, measured


def _finish(
    run: Run,
    splits: Splits,
    predictions: dict[str, Any],
    facts: dict[str, Any],
    *,
    seed: int,
    save: Callable[..., None] | None,
) -> None:
    """Write the predictions, the numbers that follow from them, and the model, if it is one."""
    target = splits.target
    metrics: dict[str, Any] = {"target": target.kind}
    for split, table in splits:
        frame = predictions_frame(table, target, predictions[split], split=split, seed=seed)
        run.write_predictions(split, frame)
        labels = labels_of(table)
        metrics[split] = target.score(labels, predictions[split])
        if each := target.score_each(labels, predictions[split]):
            metrics[split]["each"] = each
    if splits.test is not None and target.kind == "classes":
        labels = labels_of(splits.test)
        found = block_bootstrap(labels, predictions["test"], None, metrics=METRICS)
        metrics["intervals"] = {"test": {n: [i.low, i.high] for n, i in found.items()}}
    if save is not None:
        save(metrics=metrics)
    run.finish(metrics | facts)
    console.print(_table(metrics))
    console.print(f"results in {run.path}")


def _counts(splits: Splits) -> dict[str, dict[str, int]]:
    """Rows of each class in each split; of other labels, how many rows have one."""
    target = splits.target
    if target.kind != "classes":
        return {split: {"rows": len(table)} for split, table in splits}
    return {
        split: {str(c): int((labels_of(table) == c).sum()) for c in range(target.outputs)}
        for split, table in splits
    }


def _table(metrics: dict[str, Any]) -> Table:
    splits = [split for split in ("train", "dev", "test") if split in metrics]
    names = [name for name, value in metrics["dev"].items() if isinstance(value, float)]
    table = Table()
    for column in ("", *names):
        table.add_column(column, justify="right" if column else "left")
    for split in splits:
        table.add_row(split, *(f"{metrics[split][name]:.3f}" for name in names))
    return table
