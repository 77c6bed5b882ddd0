"""Masked-language-model pre-training of a Nucleotide Transformer v2 from scratch."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory
from cedilla.progress import console, progress_bar
from cedilla.run_directory import Run
from cedilla.training.blocks import CPU, prepare_blocks
from cedilla.training.checkpoint import load_state, save_state
from cedilla.training.genomes import (
    WindowSampler,
    find_genome,
    mask_tokens,
    read_genomes,
    split,
    tokens_of,
)
from cedilla.training.precision import Precision

VALIDATION_BATCHES = 4


def pretrain(
    *,
    genomes: tuple[str, ...],
    out: Path,
    layers: int = 4,
    hidden_size: int = 256,
    heads: int = 8,
    intermediate_size: int = 1024,
    k: int = 6,
    tokens: int = 128,
    batch_size: int = 64,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    warmup: int = 200,
    validation_share: float = 0.02,
    checkpoint_every: int = 200,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    data_dir: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Pre-train a small Nucleotide Transformer v2 on genomes.

    15 % of the tokens are corrupted (80 % masked, 10 % replaced, 10 % kept); AdamW, linear
    warm-up, then square-root decay. The validation loss is that of positions replaced by
    ``<mask>``, in the held-out end of every contig, beside the loss of the k-mer frequencies.

    Parameters
    ----------
    genomes:
        FASTA files, as PATH or PATH=WEIGHT. A weight, by default the known bases, counts per
        window tried; windows with an N are not used, so N-rich genomes get a smaller share.
    out:
        The run directory; the model is in its ``checkpoints/best``.
    layers, hidden_size, heads, intermediate_size:
        The shape of the model.
    k:
        Bases per token.
    tokens:
        Tokens per training sequence, ``<cls>`` included.
    batch_size:
        Sequences per step.
    steps:
        Optimiser steps.
    learning_rate:
        The highest rate.
    warmup:
        Steps until it is reached.
    validation_share:
        Share of the end of each contig that is held out.
    checkpoint_every:
        Steps between validations and checkpoints.
    gradient_checkpointing:
        Compute each block again in the backward pass: less memory, more time.
    compile:
        Compile the blocks with torch.compile, which takes a while at the first step.
    data_dir:
        Where to look for the genomes, beside the folder here.
    seed:
        Of the weights, the windows and the masks.
    resume:
        Go on from the last checkpoint in `out`.
    dry_run:
        Say what would be done, and stop.

    Examples
    --------
    cedilla pretrain --genomes yeast.fa.gz --out runs/yeast --steps 500
    """
    settings = dict(locals())
    config = _shape(settings)
    torch.manual_seed(seed)
    model = NucleotideTransformer(config)
    model.initialise()
    prepare_blocks(model, CPU, checkpointing=gradient_checkpointing, compiled=compile)
    tokenizer = Tokenizer.for_model(model)
    read = read_genomes(genomes, data_dir)
    train, held_out = split(read, validation_share)
    length = (tokens - 1) * k
    trainer = Pretrainer(
        model,
        tokenizer,
        WindowSampler(train, length=length),
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
    )
    ends = WindowSampler(held_out, length=length, part="held-out end of a contig")
    validation = validation_set(ends, tokenizer, batch_size)
    size = sum(p.numel() for p in model.parameters())
    if dry_run:
        console.print(_estimate(trainer, size, steps, batch_size * tokens))
        return out
    run = Run.start(out, verb="pretrain", config=settings, resume=resume)
    if run.complete:
        console.print(f"{out} is complete")
        return out
    for source, genome in zip(genomes, read, strict=True):
        path = find_genome(source, data_dir)[0]
        run.note_data(path, role="genome", rows=len(genome.contigs))
    trainer.run(run, validation, steps=steps, every=checkpoint_every, seed=seed)
    run.note(parameters=size, tokens_seen=steps * batch_size * tokens)
    best = _best(run.events())
    run.finish({key: best[key] for key in ("loss", "accuracy", "unigram_loss", "step")})
    return out


def _shape(settings: dict[str, Any]) -> NTConfig:
    """The model's configuration; raises :class:`InputError` with every impossible setting."""
    where = "cedilla pretrain"
    least = {"layers": 1, "hidden_size": 1, "heads": 1, "intermediate_size": 1, "tokens": 2}
    least |= {"batch_size": 1, "steps": 1, "warmup": 1, "checkpoint_every": 1}
    rules = [(settings[name] >= n, name, f"{n} at least") for name, n in least.items()]
    rules += [
        (settings["k"] in range(1, 9), "k", "1 to 8"),
        (settings["learning_rate"] > 0, "learning_rate", "above 0"),
        (0 < settings["validation_share"] < 1, "validation_share", "between 0 and 1"),
    ]
    stop_on_errors(
        Problem(where=where, what=f"{name} {settings[name]} is impossible", mend=mend)
        for good, name, mend in rules
        if not good
    )
    try:
        return NTConfig(
            hidden_size=settings["hidden_size"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            intermediate_size=settings["intermediate_size"],
            vocab_size=6 + 4 ** settings["k"] + 5,
            max_position_embeddings=max(2050, settings["tokens"] + 2),
        )
    except ValueError as error:
        raise InputError.one(where, str(error)) from None


def _best(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The first validation with the lowest loss."""
    return min(events, key=lambda event: event["loss"])


def _estimate(trainer: Pretrainer, size: int, steps: int, tokens: int) -> str:
    """What a run would do; time from the second of two real steps."""
    trainer.step(0, np.random.default_rng(0))
    clock = time.monotonic()
    trainer.step(1, np.random.default_rng(1))
    hours = (time.monotonic() - clock) * steps / 3600
    return (
        f"{size / 1e6:.1f} M parameters, {steps:,} steps of {tokens:,} tokens: about "
        f"{hours:.1f} hours, {size * 16 / 1e9 + 1:.1f} GB of memory"
    )


class Pretrainer:
    """The optimiser's loop. A step's data depend on the seed and the step's number alone, so
    that a resumed run sees what an uninterrupted one would have seen."""

    def __init__(
        self,
        model: NucleotideTransformer,
        tokenizer: Tokenizer,
        sampler: WindowSampler,
        *,
        batch_size: int,
        learning_rate: float,
        warmup: int,
    ) -> None:
        self.model, self.tokenizer, self.sampler = model, tokenizer, sampler
        self.batch_size, self.learning_rate, self.warmup = batch_size, learning_rate, warmup
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def run(
        self,
        run: Run,
        validation: list[dict[str, torch.Tensor]],
        *,
        steps: int,
        every: int,
        seed: int,
    ) -> None:
        """Train to `steps`, validating and saving on the way."""
        path = run.path / "checkpoints" / "last"
        first = load_state(path, self.model, self.optimiser)
        # A step is logged before its checkpoint: a kill between the two leaves an event too many.
        events = run.rewind(lambda event: event["step"] <= first)
        unigram = self.unigram_loss(validation, seed)
        clock = time.monotonic()
        with progress_bar() as bar:
            task = bar.add_task("pre-training", total=steps, completed=first)
            for step in range(first, steps):
                loss = self.step(step, np.random.default_rng((seed, step)))
                if not math.isfinite(loss):
                    mend = "lower --learning-rate"
                    raise InputError.one(f"step {step + 1}", "the loss is not finite", mend)
                bar.update(task, advance=1, description=f"pre-training, loss {loss:.3f}")
                if (step + 1) % every == 0 or step + 1 == steps:
                    event = {"event": "validation", "step": step + 1, "train_loss": loss}
                    event |= self.validate(validation) | {"unigram_loss": unigram}
                    event["seconds"] = round(time.monotonic() - clock, 1)
                    events.append(event)
                    run.log(**event)
                    if _best(events) is event:
                        save_directory(self.model, run.path / "checkpoints" / "best")
                    save_state(path, self.model, self.optimiser, step=step + 1)

    def step(self, step: int, rng: np.random.Generator) -> float:
        """One update; returns the loss over the corrupted positions."""
        rise = (step + 1) / self.warmup
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * min(rise, math.sqrt(1 / max(rise, 1e-9)))
        ids = tokens_of(self.sampler.draw(self.batch_size, rng), self.tokenizer)
        corrupted, chosen, _ = mask_tokens(ids, self.tokenizer, rng)
        loss = masked_loss(self.model, corrupted, ids, chosen)[0]
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return loss.item()

    @torch.no_grad()
    def validate(self, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Mean loss and accuracy over the positions replaced by ``<mask>``."""
        self.model.eval()
        results = [masked_loss(self.model, b["corrupted"], b["ids"], b["masked"]) for b in batches]
        self.model.train()
        return {
            "loss": float(np.mean([loss.item() for loss, _ in results])),
            "accuracy": float(np.mean([right.item() for _, right in results])),
        }

    def unigram_loss(self, batches: list[dict[str, torch.Tensor]], seed: int) -> float:
        """The loss of always giving the training genomes' k-mer frequencies."""
        rng = np.random.default_rng((seed, 1 << 40))
        counts = torch.ones(len(self.tokenizer), dtype=torch.float64)
        for _ in range(200):
            ids = tokens_of(self.sampler.draw(64, rng), self.tokenizer)[:, 1:]
            counts += torch.bincount(ids.flatten(), minlength=len(self.tokenizer))
        surprise = -torch.log(counts / counts.sum())
        return float(np.mean([surprise[b["ids"][b["masked"]]].mean().item() for b in batches]))


def masked_loss(
    model: NucleotideTransformer, corrupted: torch.Tensor, ids: torch.Tensor, where: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and accuracy at `where`; the output layer runs at those positions alone."""
    with Precision.of(ids.device).autocast():
        logits = model.lm_head(model.encode(corrupted)[where])
    target = ids[where]
    return F.cross_entropy(logits.float(), target), (logits.argmax(-1) == target).float().mean()


def validation_set(
    sampler: WindowSampler, tokenizer: Tokenizer, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """The same masked windows at every validation, of every run."""
    rng = np.random.default_rng(20_000)
    batches = []
    for _ in range(VALIDATION_BATCHES):
        ids = tokens_of(sampler.draw(batch_size, rng), tokenizer)
        corrupted, _, masked = mask_tokens(ids, tokenizer, rng)
        batches.append({"ids": ids, "corrupted": corrupted, "masked": masked})
    return batches
