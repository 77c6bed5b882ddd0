"""What a fine-tuning trains: a classifier, its target and loss, what of it moves, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError, Problem, stop_on_errors, unmet
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.zoo import FROM_SCRATCH, build
from cedilla.training.adapters import Adapter, Method, Trainable, default_learning_rate, prepare
from cedilla.training.batches import SequenceData
from cedilla.training.blocks import prepare_blocks
from cedilla.training.loop import LAST, Finetuner, Schedule, default_epochs
from cedilla.training.losses import Criterion, Loss
from cedilla.training.splits import Splits, labels_of
from cedilla.training.targets import Target

WHERE = "cedilla finetune"
LEAST = {
    "epochs": 1, "batch_size": 1, "accumulate": 1, "patience": 0, "rank": 1, "rows": 2,
    "top_layers": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model that is ready to be trained.

    cached: whether what its frozen lower layers give is kept on disk.
    """

    classifier: SequenceClassifier
    tokenizer: Tokenizer
    trainable: Trainable
    schedule: Schedule
    target: Target
    criterion: Criterion
    device: torch.device
    method: Method
    adapter: Adapter
    cached: bool

    def trainer(self) -> Finetuner:
        """A new trainer of the classifier as it stands."""
        return Finetuner(
            self.classifier,
            self.schedule,
            self.device,
            target=self.target,
            criterion=self.criterion,
        )


def check(settings: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` with every setting that no training can have."""
    rules = [
        (settings[name] is None or settings[name] >= n, name, f"{n} at least")
        for name, n in LEAST.items()
    ]
    rate = settings["learning_rate"]
    rules += [
        (rate is None or rate > 0, "learning_rate", "above 0"),
        (settings["weight_decay"] >= 0, "weight_decay", "0 at least"),
        (0 < settings["layer_decay"] <= 1, "layer_decay", "above 0, to 1"),
        (settings["clip"] > 0, "clip", "above 0"),
        (settings["alpha"] > 0, "alpha", "above 0"),
        (settings["gamma"] >= 0, "gamma", "0 at least"),
    ]
    rules += [
        (0 <= settings[name] < 1, name, "from 0 to below 1")
        for name in ("dropout", "warmup", "ema", "label_smoothing")
    ]
    named = [(good, f"{name} {settings[name]} is impossible", mend) for good, name, mend in rules]
    patient = settings["patience"] <= 0 or settings["select"] != LAST
    what = "patience waits for a better metric, and none is selected"
    found = settings["learning_rate"] is None or not settings["find_rate"]
    of_focal = settings["gamma"] == Loss().gamma or settings["loss"] == "focal"
    together = [
        (found, "find_rate and learning_rate exclude each other", "leave one out"),
        (of_focal, "gamma does nothing without the focal loss", "add --loss focal"),
        (patient, what, "name one with --select"),
    ]
    method = settings["method"]
    together += [
        (False, f"{name} does nothing with method {method}", "leave it out")
        for name in idle(settings)
    ]
    stop_on_errors(unmet(WHERE, named) or unmet(WHERE, together))


def idle(settings: Mapping[str, Any]) -> list[str]:
    """The names of settings that are given and would do nothing."""
    method, plain = settings["method"], Adapter()
    low_rank = ("lora", "dora", "rslora")
    needs = {
        "targets": (settings["targets"] == plain.targets, (*low_rank, "ia3")),
        "rank": (settings["rank"] == plain.rank, low_rank),
        "alpha": (settings["alpha"] == plain.alpha, low_rank),
        "top_layers": (settings["top_layers"] == plain.top_layers, ("top",)),
    }
    return [name for name, (unset, methods) in needs.items() if not unset and method not in methods]


def make_plan(splits: Splits, settings: Mapping[str, Any]) -> Plan:
    """The plan that the settings of the verb ask for; random weights are drawn by the seed."""
    torch.manual_seed(settings["seed"])
    name, method, target = settings["model"], settings["method"], splits.target
    encoder = build(name)
    from_scratch = name in FROM_SCRATCH
    if settings["weights"] == "random" and not from_scratch:
        encoder.initialise()  # type: ignore[operator]
    if from_scratch and method != "full":
        raise InputError.one(f"model {name!r}", "has no trained weights", "use --method full")
    size = sum(p.numel() for p in encoder.parameters())
    rate = settings["learning_rate"] or default_learning_rate(method, size, baseline=from_scratch)
    adapter = Adapter(
        targets=settings["targets"],
        **{n: settings[n] for n in ("rank", "alpha", "dropout", "top_layers")},
    )
    classifier = SequenceClassifier(
        encoder,
        target.outputs,
        pooling=settings["pooling"],
        dropout=settings["dropout"],
        per_base=target.kind == "per_base",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainable = prepare(classifier, method, adapter)
    flags = {"checkpointing": settings["gradient_checkpointing"], "compiled": settings["compile"]}
    prepare_blocks(encoder, device, **flags)
    return Plan(
        classifier=classifier,
        tokenizer=Tokenizer.for_model(encoder),
        trainable=trainable,
        schedule=_schedule(splits, dict(settings) | {"learning_rate": rate}),
        target=target,
        criterion=_loss(settings).of(target, labels_of(splits.train)),
        device=device,
        method=method,
        adapter=adapter,
        cached=method in ("head", "top") if settings["cache"] is None else settings["cache"],
    )


def make_data(splits: Splits, tokenizer: Tokenizer, long: Any) -> dict[str, SequenceData]:
    """Every split, tokenized; raises :class:`InputError` with the long sequences of all files."""
    data: dict[str, SequenceData] = {}
    problems: list[Problem] = []
    if splits.target.kind == "per_base" and long != "refuse":
        mend = "cut the sequences and their labels yourself"
        raise InputError.one(f"--long {long}", "would part bases from their labels", mend)
    for split, table in splits:
        record = table.frame.attrs["record"]
        names = [f"{table.path} {record} {number}" for number in table.frame.index]
        try:
            data[split] = SequenceData(
                table.sequences, labels_of(table), tokenizer, names=names, long=long
            )
        except InputError as error:
            problems += error.problems
    stop_on_errors(problems)
    return data


def check_select(select: str, target: Target) -> None:
    """Raise :class:`InputError` where `select` names no metric of the target."""
    known = [LAST, *target.metrics, "loss"]
    if select not in known:
        mend = f"choose {', '.join(known)}"
        raise InputError.one(f"--select {select}", f"does not measure {target.kind}", mend)


def _schedule(splits: Splits, settings: Mapping[str, Any]) -> Schedule:
    target = splits.target
    check_select(settings["select"], target)
    strands = settings["strands"]
    chosen: dict[str, Any] = {
        "epochs": settings["epochs"] or default_epochs(len(splits.train)),
        # What marks a base, such as a splice site, marks it on its own strand.
        "strands": target.kind != "per_base" if strands is None else strands,
    }
    names = {field.name for field in fields(Schedule)} - chosen.keys()
    return Schedule(**{name: settings[name] for name in names}, **chosen)


def _loss(settings: Mapping[str, Any]) -> Loss:
    return Loss(
        kind=settings["loss"],
        smoothing=settings["label_smoothing"],
        gamma=settings["gamma"],
        class_weights="balanced" if settings["balanced"] else None,
    )
