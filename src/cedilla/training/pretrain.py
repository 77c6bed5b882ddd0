"""Masked-language-model pre-training on genomes: the verb."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import stop_on_errors, unmet
from cedilla.models.shards import main_file, weight_files
from cedilla.models.zoo import directory
from cedilla.progress import console
from cedilla.run_directory import Run
from cedilla.training.blocks import prepare_blocks
from cedilla.training.distillation import Teacher
from cedilla.training.distributed import World, world
from cedilla.training.genomes import Genome, WindowSampler, hold_out, read_genomes
from cedilla.training.markov import baselines
from cedilla.training.precision import Precision
from cedilla.training.pretrainer import Masked, Pretrainer, Schedule, best_of, held_out_set
from cedilla.training.starting_model import WHERE, starting_model

LEAST = dict.fromkeys(("cooldown", "overlap", "random_start"), 0) | dict.fromkeys(
    ("layers", "hidden_size", "heads", "intermediate_size", "channels", "stride", "batch_size",
     "accumulate", "steps", "warmup", "validation_windows", "checkpoint_every", "keep"), 1,
) | {"tokens": 2}  # fmt: skip
BASELINE_SEED, BASELINE_BASES = 1 << 40, 20_000_000


def pretrain(
    *,
    genomes: tuple[str, ...],
    out: Path,
    architecture: Literal["nt", "hybrid"] = "nt",
    init: str | None = None,
    layers: int = 4,
    hidden_size: int = 256,
    heads: int = 8,
    intermediate_size: int = 1024,
    k: int = 6,
    channels: int = 128,
    stride: int = 4,
    dilations: tuple[int, ...] = (1, 2, 4, 8),
    tokens: int = 128,
    strands: bool = True,
    overlap: int = 50,
    random_start: int = 100,
    soft_weight: float = 1.0,
    batch_size: int = 64,
    accumulate: int = 1,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    initial_learning_rate: float = 0.0,
    warmup: int = 200,
    cooldown: int = 0,
    validation_share: float = 0.02,
    validation_contigs: tuple[str, ...] = (),
    validation_windows: int = 256,
    markov_order: int = 5,
    checkpoint_every: int = 200,
    keep: int = 3,
    teacher: str | None = None,
    distill_weight: float = 0.5,
    temperature: float = 2.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    sharded: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Pre-train a language model on genomes: a Nucleotide Transformer v2, or a hybrid.

    15 % of the tokens are corrupted (80 % masked, 10 % replaced, 10 % kept); AdamW (betas 0.9 and
    0.999, decay 0.01 of matrices), linear warm-up, then square-root decay. Validation is on
    positions replaced by ``<mask>`` in held-out bases, beside the token frequencies and a Markov
    chain of bases. With ``torchrun --nproc-per-node N --no-python`` in front of the command,
    several processes give the numbers of one; an interrupted run goes on with any number of them.

    Parameters
    ----------
    genomes:
        FASTA files, as PATH or PATH=WEIGHT; REFERENCE.fa::CALLS.vcf.gz for the haplotypes of a
        phased VCF; or a list of these in a .txt or .tsv file. A weight is a share of the windows,
        by default the known bases.
    out:
        The run directory; the model is in its ``checkpoints/best``.
    architecture:
        `nt`, a Nucleotide Transformer v2, or `hybrid`, convolutions over single bases and
        Transformer blocks on a shortened sequence.
    init:
        Go on from the weights of this model, a name of the zoo or a directory; its shape counts.
    layers, hidden_size, heads, intermediate_size:
        The shape of the Transformer blocks.
    k:
        Of `nt`: bases per token.
    channels:
        Of `hybrid`: width of the convolutions.
    stride:
        Of `hybrid`: bases per position of the Transformer blocks.
    dilations:
        Of `hybrid`: those of the convolutions, first to last.
    tokens:
        Tokens per training sequence, ``<cls>`` included.
    strands:
        Read windows on either strand.
    overlap:
        Bases that neighbouring chunks of a genome share.
    random_start:
        A window begins up to so many bases into its chunk.
    soft_weight:
        How much a lower-case base, a repeat, counts in the loss beside one in upper case.
    batch_size:
        Sequences per step, over all processes.
    accumulate:
        Parts that each process cuts its share of a batch into, one after the other, to save memory.
    steps:
        Optimiser steps.
    learning_rate:
        The highest rate.
    initial_learning_rate:
        The rate that the warm-up begins with; the published models rose from 5e-5 to 1e-4.
    warmup:
        Steps until the highest rate is reached; after them it falls with the square root of the
        step.
    cooldown:
        Last steps, over which the rate falls in a line to zero: the model that is to be used.
    validation_share:
        Share of the end of each contig that is held out, unless contigs are named.
    validation_contigs:
        Contigs, or regions such as chrX:1-2000000 (1-based, inclusive), held out instead.
    validation_windows:
        Windows of the held-out bases that every validation looks at.
    markov_order:
        Bases that the Markov chain looks back.
    checkpoint_every:
        Steps between validations and checkpoints.
    keep:
        Checkpoints to keep, beside the best model.
    teacher:
        A larger model with the same tokens, by name or directory, to distil from.
    distill_weight:
        Share of the loss that is the divergence from the teacher.
    temperature:
        How much the teacher's expectations are softened.
    precision:
        Of matrix products. `auto` is bfloat16 where the processor has it, float32 elsewhere.
    gradient_checkpointing:
        Compute each block again in the backward pass: less memory, more time.
    compile:
        Compile the blocks with torch.compile, which takes a while at the first step.
    sharded:
        Give each process a part of the weights (FSDP2) instead of all of them (DDP), for models
        that do not fit.
    data_dir:
        Where to look for the genomes, beside the folder here.
    seed:
        Of the weights, the windows and the masks.
    resume:
        Go on from the last checkpoint in `out`.
    dry_run:
        Say what would be done, in what time and memory, and stop.

    Examples
    --------
    cedilla pretrain --genomes yeast.fa.gz --out runs/yeast --steps 500
    """
    settings = dict(locals())
    with world() as here:
        here.together(lambda: _check(settings, here))
        task = _prepare(settings, here)
        if dry_run:
            console.print(_estimate(task, settings, here))
            return out
        run = here.together(lambda: _begin(task, settings) if here.first else None)
        if here.of_first(run is not None and run.complete):
            console.print(f"{out} is complete")
            return out
        _train(task, run, settings, here)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is trained, on what, and what it is measured on."""

    genomes: list[Genome]
    trainer: Pretrainer
    held_out: Masked


def _check(settings: Mapping[str, Any], here: World) -> None:
    """Raise :class:`InputError` with every setting that no pre-training can have."""
    rules = [(settings[name] >= n, name, f"{n} at least") for name, n in LEAST.items()]
    rate = settings["learning_rate"]
    rules += [
        (settings["k"] in range(1, 9), "k", "1 to 8"),
        (settings["markov_order"] in range(11), "markov_order", "0 to 10"),
        (0 < rate < math.inf, "learning_rate", "above 0"),
        (0 <= settings["initial_learning_rate"] <= rate, "initial_learning_rate", f"0 to {rate}"),
        (0 < settings["validation_share"] < 1, "validation_share", "between 0 and 1"),
        (0 <= settings["soft_weight"] < math.inf, "soft_weight", "0 at least"),
        (0 <= settings["seed"] < 2**63, "seed", "0 to 2^63 - 1"),
        (0 < settings["distill_weight"] <= 1, "distill_weight", "above 0, to 1"),
        (0 < settings["temperature"] < math.inf, "temperature", "above 0"),
    ]
    named = ((good, f"{name} {settings[name]} is impossible", mend) for good, name, mend in rules)
    stop_on_errors(unmet(WHERE, named) or unmet(WHERE, _fits(settings, here)))


def _fits(settings: Mapping[str, Any], here: World) -> list[tuple[bool, str, str]]:
    """Rules of settings that must go with each other: met, what is wrong, mend."""
    n, ways = settings["batch_size"], here.size * settings["accumulate"]
    parts = f"{here.size} for the processes times accumulate {settings['accumulate']}"
    defaults = pretrain.__kwdefaults__ or {}
    idle = [name for name in ("distill_weight", "temperature") if settings[name] != defaults[name]]
    cooldown, steps = settings["cooldown"], settings["steps"]
    return [
        (
            n % ways == 0,
            f"batch_size {n} cannot be cut evenly into {ways} parts, {parts}",
            f"take batch_size {-(-n // ways) * ways}",
        ),
        (cooldown <= steps, f"cooldown {cooldown} is longer than steps {steps}", "lower it"),
        (
            not idle or settings["teacher"] is not None,
            f"{' and '.join(idle)} without a teacher",
            "name one with --teacher",
        ),
        (
            not settings["sharded"] or here.size > 1,
            "sharded needs several processes",
            "start with torchrun --nproc-per-node N --no-python cedilla pretrain",
        ),
    ]


def _prepare(settings: Mapping[str, Any], here: World) -> _Task:
    """Everything up to the first step; the same, or an error, in all processes."""

    def read() -> list[Genome]:
        return read_genomes(settings["genomes"], settings["data_dir"])

    # The first process alone fills the cache, from which the others then read.
    first = here.together(lambda: read() if here.first else None)
    genomes = here.together(lambda: first or read())
    return here.together(lambda: _task(genomes, settings, here))


def _task(genomes: list[Genome], settings: Mapping[str, Any], here: World) -> _Task:
    model = starting_model(settings, pretrain.__kwdefaults__ or {})
    flags = {"checkpointing": settings["gradient_checkpointing"], "compiled": settings["compile"]}
    prepare_blocks(model, here.device, **flags)
    tokenizer = Tokenizer.for_model(model)
    train, held_out = _samplers(genomes, tokenizer.k, settings)
    trainer = Pretrainer(
        model,
        tokenizer,
        train,
        _schedule(settings),
        here=here,
        precision=_precision(settings["precision"], here.device),
        sharded=settings["sharded"],
        teacher=_teacher(tokenizer, settings, here),
    )
    validation = held_out_set(held_out, tokenizer, settings["validation_windows"])
    return _Task(genomes=genomes, trainer=trainer, held_out=validation)


def _samplers(
    genomes: list[Genome], k: int, settings: Mapping[str, Any]
) -> tuple[WindowSampler, WindowSampler]:
    """Of the training bases, and of those that are held out."""
    named, share = settings["validation_contigs"], settings["validation_share"]
    train, held_out = hold_out(genomes, named, share=share)
    length = (settings["tokens"] - 1) * k
    chunks = {"overlap": settings["overlap"], "start": settings["random_start"]}
    part = "held-out region" if named else "held-out end of a contig"
    return (
        WindowSampler(train, length=length, strands=settings["strands"], **chunks),
        WindowSampler(held_out, length=length, part=part, **chunks),
    )


def _schedule(settings: Mapping[str, Any]) -> Schedule:
    names = {field.name for field in fields(Schedule)} - {"every"}
    return Schedule(every=settings["checkpoint_every"], **{name: settings[name] for name in names})


def _precision(name: str, device: torch.device) -> Precision:
    if name != "auto":
        return Precision(device.type, getattr(torch, name))
    found = Precision.of(device)
    # float16 wants its losses scaled, and pays little where the gradients are not.
    return Precision(device.type, torch.float32) if found.scaled else found


def _teacher(tokenizer: Tokenizer, settings: Mapping[str, Any], here: World) -> Teacher | None:
    if settings["teacher"] is None:
        return None
    return Teacher(settings["teacher"], tokenizer, settings["tokens"], here.device)


def _begin(task: _Task, settings: Mapping[str, Any]) -> Run:
    """Open the run directory, and note what goes in."""
    run = Run.start(settings["out"], verb="pretrain", config=settings, resume=settings["resume"])
    if run.complete:
        return run
    run.note_inputs(_inputs(task, settings))
    here = task.trainer.here
    run.note(parameters=task.trainer.parameters, device=str(here.device), processes=here.size)
    run.note(seed=settings["seed"], precision=str(task.trainer.precision.dtype))
    return run


def _inputs(task: _Task, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All files that the numbers follow from."""
    found = [
        {"path": path, "role": "genome", "rows": len(genome.contigs), "weight": genome.weight}
        for genome in task.genomes
        for path in genome.files
    ]
    for role in ("init", "teacher"):
        if settings[role]:
            found += [
                {"path": path, "role": role}
                for path in weight_files(main_file(directory(settings[role])))
            ]
    return found


def _train(task: _Task, run: Run | None, settings: Mapping[str, Any], here: World) -> None:
    """Train to the end, and write the numbers of the best model beside the baselines."""
    trainer, held_out = task.trainer, task.held_out
    floors = _baselines(task, settings) if here.first else {}
    trainer.run(run, held_out, floors)
    if run:
        tokens = settings["steps"] * trainer.tokens_per_step
        run.note(tokens_seen=tokens)
        best = best_of(run.events())
        names = ("step", "tokens", "loss", "perplexity", "accuracy", *floors)
        run.finish({name: best[name] for name in names})
        console.print(_summary(best, settings["markov_order"]))
        console.print(f"the model is in {run.path / 'checkpoints' / 'best'}")


def _summary(best: Mapping[str, Any], order: int) -> Table:
    """The best validation beside the baselines."""
    table = Table(title=f"held out, after step {best['step']:,}")
    for column in ("", "nats a masked token", "perplexity", "accuracy"):
        table.add_column(column, justify="right" if column else "left")
    named = {
        "": "model",
        "unigram_": "token frequencies",
        "markov_": f"Markov chain, order {order}",
    }
    for prefix, name in named.items():
        loss, perplexity, right = (best[prefix + key] for key in ("loss", "perplexity", "accuracy"))
        table.add_row(name, f"{loss:.4f}", f"{perplexity:.3f}", f"{right:.1%}")
    if best["loss"] >= best["markov_loss"]:
        table.caption = "The chain, which only counts, is as good or better: train longer."
    return table


def _baselines(task: _Task, settings: Mapping[str, Any]) -> dict[str, float]:
    """What token frequencies and a Markov chain of the training bases reach in validation."""
    held_out, trainer = task.held_out, task.trainer
    # Of a small genome, each base about ten times: more would bring nothing.
    bases = min(BASELINE_BASES, 10 * sum(genome.known for genome in task.genomes))
    rng = np.random.default_rng((settings["seed"], BASELINE_SEED))
    return baselines(
        trainer.sampler,
        [(held_out.corrupted, held_out.ids, held_out.weights > 0)],
        trainer.tokenizer,
        rng,
        order=settings["markov_order"],
        bases=bases,
    )


def _estimate(task: _Task, settings: Mapping[str, Any], here: World) -> str:
    """What a run would do: time from the second of two real steps, and memory after both."""
    trainer, steps = task.trainer, settings["steps"]
    trainer.step(0)
    clock = time.monotonic()
    trainer.step(1)
    minutes = (time.monotonic() - clock) * steps / 60
    duration = f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    processes = "a process" if here.size == 1 else f"each of {here.size} processes"
    return (
        f"{trainer.parameters / 1e6:.1f} M parameters, {steps:,} steps of "
        f"{trainer.tokens_per_step:,} tokens: about {duration}, "
        f"{_peak(here.device) / 1e9:.1f} GB of memory for {processes} on {here.device.type}"
    )


def _peak(device: torch.device) -> float:
    """The most bytes that this process has held so far: of its GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
