"""Fine-tuning speed beside Hugging Face's Trainer and peft, on the same model, weights and data.

The model has the shape of v2-50m and random weights. The peer is what people write: transformers
4.55.4's rotary ``EsmForSequenceClassification`` (with v2's bias-free SwiGLU put in), peft's LoRA of
rank 8, ``Trainer`` with its default arguments, on 6-mers that were tokenized beforehand; and the
same with ``bf16=True``. Ours is the loop of ``cedilla finetune`` as it comes, which draws, orders
and pads its batches while it is timed. What is trained:

- lora_qkvd: LoRA on query, key, value and dense of all 12 blocks; lora_qv: on query and value;
- lora_top: lora_qkvd on the last 4 blocks; top: all weights of the last 4. Ours reads what the
  lower 8 blocks give from its file, and is also timed without one. The peer trains the same; a
  further one is the peer's lora_qkvd on all blocks.

Each contender runs in a process of its own; they take steps in turn, and stand still otherwise. The
loss of equal ids is compared first. At the end, the shipped hybrid learns a planted motif by its
last block, with and without the file.

Written to ``benchmarks/results/finetuning.json``: tokens/s of the best and the median step, their
ratios, that of the least seconds of processor (which other processes disturb less, and which says
most with ``OMP_NUM_THREADS=1``), and the memory over the imports. Run ``make reference`` once
before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import inference  # first: it puts the peer's folder on the path

# isort: split
import numpy as np
import peft
import pretraining
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table

from cedilla.dna.tokenizer import Tokenizer
from cedilla.files import write_json
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.zoo import load
from cedilla.training.adapters import (
    Adapter,
    Trainable,
    freeze,
    inject,
    match_modules,
    prepare,
)
from cedilla.training.batches import SequenceData
from cedilla.training.frozen_layers import keep_frozen_outputs
from cedilla.training.loop import Finetuner, Schedule
from cedilla.training.targets import Target

RESULTS = inference.ROOT / "benchmarks" / "results" / "finetuning.json"
CPU = torch.device("cpu")
BATCHES = {86: 16, 512: 4}  # sequences a batch, by their tokens
SIZE = 16  # batches that are drawn from
TRAINED = ("lora_qkvd", "lora_qv", "lora_top", "top")
TARGETS = {"lora_qv": ("query", "value")}
ALL_TARGETS = ("query", "key", "value", "dense")
LAYERS, TOP = 12, 4
RANK, ALPHA, DROPOUT, RATE = 8, 16, 0.1, 2e-4
PEERS = {"transformers fp32": {}, "transformers bf16": {"bf16": True}}
OURS, KEPT = "cedilla", "cedilla, from its file"
TARGET = Target(kind="classes", columns=("label",), names=("0", "1"))


def main() -> None:
    """Time all contenders in turn, for each kind of training and length; print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each contender")
    parser.add_argument(
        "--train", nargs="+", choices=TRAINED, default=TRAINED,
        help="what to measure; the others keep their results",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=int, nargs="+", choices=list(BATCHES), default=list(BATCHES)
    )
    parser.add_argument("--dry", action="store_true", help="nothing written")
    parser.add_argument(
        "--contender", nargs=3, metavar=("NAME", "TRAINED", "TOKENS"), help="(inner)"
    )
    args = parser.parse_args()
    if args.contender:
        name, trained, tokens = args.contender
        contend(name, trained, int(tokens))
        return
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for trained in args.train:
        for tokens in args.tokens:
            kept[f"{trained}_{tokens}_tokens"] = found = measure(trained, tokens, args.rounds)
            show(f"{trained}, {tokens} tokens", found)
    if "top" in args.train:
        kept["planted_motif"] = planted_motif()
        print(json.dumps(kept["planted_motif"], indent=2))
    if not args.dry:
        write_json(RESULTS, kept)


def measure(trained: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of each contender's steps, and what follows from them."""
    names = dict.fromkeys((*PEERS, OURS), trained)
    if "top" in trained:
        names |= {KEPT: trained, "transformers fp32, lora_qkvd": "lora_qkvd"}
    running = {
        name: Contender("--contender", name, what, str(tokens)) for name, what in names.items()
    }
    times: dict[str, list[float]] = {name: [] for name in running}
    processor: dict[str, list[float]] = {name: [] for name in running}
    for number in range(rounds + 1):
        for name, contender in running.items():
            step = contender.times()
            if number:  # the first step also allocates
                times[name].append(step["seconds"])
                processor[name].append(step["processor"])
    ends = {name: contender.finish() for name, contender in running.items()}
    losses = [end["loss"] for end in ends.values()]
    if max(losses) - min(losses) > 1e-3:
        raise RuntimeError(f"the losses of equal ids differ: {losses}")
    size = BATCHES[tokens]
    result: dict[str, Any] = {"batch": size, "loss_difference": max(losses) - min(losses)}
    for name, end in ends.items():
        result[name] = {
            "tokens_per_second": {
                "best": round(tokens * size / min(times[name])),
                "median": round(tokens * size / statistics.median(times[name])),
            },
            **{key: end[key] for key in ("memory_mb", "trainable", "dtype", "once_seconds")},
        }
    fastest = KEPT if KEPT in names else OURS
    result["times_as_fast"] = {
        name: {
            "best": round(min(times[name]) / min(times[fastest]), 2),
            "median": round(statistics.median(times[name]) / statistics.median(times[fastest]), 2),
            "processor": round(min(processor[name]) / min(processor[fastest]), 2),
        }
        for name in names
        if name != fastest
    }
    return result | {
        "rounds": rounds,
        "machine": inference.machine(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }


class Contender(pretraining.Contender):
    """A process of this script that makes a step when it is told to."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def times(self) -> dict[str, float]:
        """Seconds of one more step: on the wall, and of processor."""
        return self._answer("step")


class Turns(pretraining.Turns):
    """The other end, which also counts the seconds of processor."""

    def wait(self) -> bool:
        more = super().wait()
        self.processor = time.process_time()
        return more

    def done(self) -> None:
        found = {
            "seconds": time.perf_counter() - self.clock,
            "processor": time.process_time() - self.processor,
        }
        print(json.dumps(found), flush=True)


def contend(name: str, trained: str, tokens: int) -> None:
    """Be one of the contenders: steps in turn, then the memory and the loss of equal ids."""
    empty = inference._resident()
    torch.manual_seed(0)
    model = SequenceClassifier(inference.own(), 2, pooling="cls", dropout=0.0)
    library = name.partition(",")[0]
    if library == OURS:
        facts = ours(model, trained, tokens, kept=name == KEPT)
    else:
        facts = theirs(model, trained, tokens, PEERS[library])
    print(json.dumps({"memory_mb": round(inference._peak() - empty), **facts}), flush=True)


def sequences(tokens: int) -> list[str]:
    """Random bases of that many 6-mers with <cls>."""
    rng = np.random.default_rng(0)
    shape = (SIZE * BATCHES[tokens], 6 * (tokens - 1))
    return ["".join(row) for row in rng.choice(list("ACGT"), shape)]


def labels(tokens: int) -> np.ndarray:
    """One in two."""
    return np.arange(SIZE * BATCHES[tokens]) % 2


def probe() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels of a batch whose loss all are asked for."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(6, 4102, (4, 64)))
    return ids, torch.arange(4) % 2


def ours(model: SequenceClassifier, trained: str, tokens: int, *, kept: bool) -> dict[str, Any]:
    """The loop of `cedilla finetune`."""
    counted = trainable(model, trained)
    ids, right = probe()
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(ids, torch.ones_like(ids, dtype=torch.bool)), right)
    trainer = trainer_of(model, BATCHES[tokens])
    data = SequenceData(sequences(tokens), labels(tokens), Tokenizer.for_model(model.encoder))
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        if kept:
            keep_frozen_outputs(model.encoder, [data], trainer.precision, folder=Path(folder))
        once = time.perf_counter() - clock
        model.train()
        batches, turns = endless(data, BATCHES[tokens]), Turns()
        while turns.wait():
            trainer.update(next(batches), RATE)
            turns.done()
    return {
        "dtype": str(trainer.precision.dtype).removeprefix("torch."),
        "trainable": counted.trainable,
        "loss": loss.item(),
        "once_seconds": round(once, 2),
    }


def trainable(model: SequenceClassifier, trained: str) -> Trainable:
    """Freeze and adapt the model."""
    targets = TARGETS.get(trained, ALL_TARGETS)
    if trained != "lora_top":
        method = "top" if trained == "top" else "lora"
        return prepare(
            model, method,
            Adapter(targets=targets, rank=RANK, alpha=ALPHA, dropout=DROPOUT, top_layers=TOP),
        )  # fmt: skip
    upper = tuple(f"esm.encoder.layer.{number}." for number in range(LAYERS - TOP, LAYERS))
    modules = tuple(n for n in match_modules(model.encoder, targets) if n.startswith(upper))
    settings = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": DROPOUT}
    inject(model.encoder, {"peft_type": "LORA", **settings}, modules)
    return freeze(model, "lora", modules)


def trainer_of(model: SequenceClassifier, batch_size: int, **schedule: Any) -> Finetuner:
    """Our trainer, with the schedule's defaults."""
    facts = {"epochs": 1, "learning_rate": RATE, "patience": 0, "select": "mcc", "seed": 0}
    return Finetuner(
        model, Schedule(batch_size=batch_size, **facts | schedule), CPU, target=TARGET,
        criterion=lambda out, right: F.cross_entropy(out, right, reduction="none"),
    )  # fmt: skip


def endless(data: SequenceData, size: int) -> Any:
    """Batches of one epoch after the other."""
    rng = np.random.default_rng(0)
    while True:
        yield from data.shuffled(size, rng, strands=True)


def theirs(
    model: SequenceClassifier, trained: str, tokens: int, more: dict[str, bool]
) -> dict[str, Any]:
    """Hugging Face's Trainer, `more` being its arguments beside the defaults."""
    peer = hugging_face(model)
    ids, right = probe()
    with torch.no_grad():
        loss = F.cross_entropy(peer.eval()(ids, torch.ones_like(ids)).logits, right).item()
    if trained == "top":
        lower = [peer.esm.embeddings, *peer.esm.encoder.layer[:-TOP]]
        for part in lower:
            part.requires_grad_(False)
    else:
        upper = list(range(LAYERS - TOP, LAYERS)) if trained == "lora_top" else None
        settings = peft.LoraConfig(
            task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT,
            target_modules=list(TARGETS.get(trained, ALL_TARGETS)), layers_to_transform=upper,
        )  # fmt: skip
        peer = peft.get_peft_model(peer, settings)
    steps_in_turn(peer, tokens, more)
    return {
        "dtype": "bfloat16" if more else "float32",
        "trainable": sum(p.numel() for p in peer.parameters() if p.requires_grad),
        "loss": loss,
        "once_seconds": 0.0,
    }


def steps_in_turn(peer: torch.nn.Module, tokens: int, more: dict[str, bool]) -> None:
    """Train until told to stop."""
    turns = Turns()

    class InTurn(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.done()
            control.should_training_stop = not turns.wait()

    tokenizer = Tokenizer(6, version=2)
    found = tokenizer.encode_ragged(sequences(tokens))
    rows = [
        {"input_ids": torch.from_numpy(row).long(), "attention_mask": torch.ones(tokens).long(),
         "labels": int(label)}
        for row, label in zip(found, labels(tokens), strict=True)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=pretraining.LONGEST_STEPS,
            per_device_train_batch_size=BATCHES[tokens],
            learning_rate=RATE,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            **more,
        )
        transformers.Trainer(peer, arguments, train_dataset=rows, callbacks=[InTurn()]).train()


def hugging_face(model: SequenceClassifier) -> torch.nn.Module:
    """Their classifier of the same shape and weights, in eager attention."""
    encoder = inference.peer(model.encoder, "eager")
    encoder.config.num_labels = 2
    peer = transformers.EsmForSequenceClassification(encoder.config)
    peer.esm = encoder
    for name in ("dense", "out_proj"):
        getattr(peer.classifier, name).load_state_dict(getattr(model.head, name).state_dict())
    return peer


def planted_motif() -> dict[str, Any]:
    """What the shipped hybrid learns by its last block, with and without the file."""
    result: dict[str, Any] = {}
    size, steps, rate = 32, 512, 1.5e-3
    for name in (OURS, KEPT):
        torch.manual_seed(0)
        model = SequenceClassifier(load("mini"), 2, dropout=0.0)
        prepare(model, "top", Adapter(top_layers=1))
        trainer = trainer_of(model, size)
        tokenizer = Tokenizer.for_model(model.encoder)
        train, test = (SequenceData(*motifs(2048, seed), tokenizer) for seed in (0, 1))
        with tempfile.TemporaryDirectory() as folder:
            clock = time.process_time()
            if name == KEPT:
                keep_frozen_outputs(
                    model.encoder, [train, test], trainer.precision, folder=Path(folder)
                )
            model.train()
            batches = endless(train, size)
            for step in range(steps):
                trainer.update(next(batches), rate * min(1.0, step / 50) * (1 - step / steps))
            scores = TARGET.score(test.labels, trainer.predictions(trainer.logits(test, "test")))
        result[name] = {key: round(scores[key], 4) for key in ("accuracy", "auroc", "mcc")}
        result[name] |= {"processor_seconds": round(time.process_time() - clock, 1)}
    return result


def motifs(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Random sequences of 100 bases, half of them with a motif somewhere."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(list("ACGT"), (n, 100))
    for row in rows[1::2]:
        at = rng.integers(0, 90)
        row[at : at + 10] = list("TGACTCAGCA")
    return ["".join(row) for row in rows], np.arange(n) % 2


def show(title: str, result: dict[str, Any]) -> None:
    """The results as a table."""
    table = Table(title=f"Fine-tuning, v2-50m shape: {title}")
    for column in (
        "",
        "tokens/s, best",
        "median",
        "MB",
        "trained",
        "ours, ×: best",
        "median",
        "processor",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, found in result.items():
        if not isinstance(found, dict) or "memory_mb" not in found:
            continue
        ratio = result["times_as_fast"].get(name, {"best": 1, "median": 1, "processor": 1})
        speed = found["tokens_per_second"]
        table.add_row(
            name,
            f"{speed['best']:,}",
            f"{speed['median']:,}",
            f"{found['memory_mb']:,}",
            f"{found['trainable']:,}",
            f"{ratio['best']:.2f}",
            f"{ratio['median']:.2f}",
            f"{ratio['processor']:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
