"""Pre-training speed beside a plain Hugging Face loop, on the same model, weights and batches.

The peer is what people write: transformers 4.55.4's rotary ``EsmForMaskedLM`` (with v2's bias-free
SwiGLU put in), ``Trainer`` with its default arguments, ``DataCollatorForLanguageModeling``, on
6-mers that Hugging Face's tokenizer made beforehand, so that its reading and tokenizing are not
timed; and the same with ``bf16=True``. Ours is the loop of ``cedilla pretrain`` as it comes, which
draws, tokenizes and masks windows of a FASTA file while it is timed. Each runs in a process of its
own; they take steps in turn, and stand still otherwise. The loss of equal ids is compared first.
Written to ``benchmarks/results/pretraining.json``: tokens/s of the best and the median step, the
utilisation of the machine's matrix peak in the type that the contender computes in, and the memory
over the imports. Our operations are counted for all: a forward pass with the output layer at the
15 % of the tokens that are asked for, times three. Run ``make reference`` once before.
"""

from __future__ import annotations

import argparse
import json
import math
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
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table

from cedilla.dna.tokenizer import MASK, Tokenizer
from cedilla.files import write_json
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.speed import MatrixPeak, flops
from cedilla.training.distributed import World
from cedilla.training.genomes import WindowSampler, read_genomes
from cedilla.training.precision import Precision
from cedilla.training.pretrainer import Masked, Objective, Pretrainer, Schedule

RESULTS = inference.ROOT / "benchmarks" / "results" / "pretraining.json"
CONFIG = NTConfig(
    hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024
)
CPU = torch.device("cpu")
BATCHES = {128: 64, 512: 16}  # windows a batch, by their tokens
GENOME = 2_000_000  # bases
SHARE = 0.15
PEERS = {"transformers fp32": {}, "transformers bf16": {"bf16": True}}
OURS = "cedilla"
LONGEST_STEPS = 100_000  # no contender comes to the end of its schedule


def main() -> None:
    """Time all contenders in turn, for each length; print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each contender")
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing written")
    parser.add_argument(
        "--tokens", type=int, nargs="+", choices=list(BATCHES), default=list(BATCHES),
        help="lengths to measure; the others keep their results",
    )  # fmt: skip
    parser.add_argument("--contender", nargs=3, metavar=("NAME", "TOKENS", "FASTA"), help="(inner)")
    args = parser.parse_args()
    if args.contender:
        name, tokens, fasta = args.contender
        contend(name, int(tokens), Path(fasta))
        return
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "genome.fa"
        fasta.write_text(f">random\n{genome()}\n")
        rounds = 2 if args.quick else args.rounds
        found = {f"{n}_tokens": measure(n, fasta, rounds) for n in args.tokens}
    show(found)
    if not args.quick:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_json(RESULTS, kept | found)


def genome() -> str:
    """Random bases without N."""
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    return np.random.default_rng(0).choice(letters, GENOME).tobytes().decode()


def measure(tokens: int, fasta: Path, rounds: int) -> dict[str, Any]:
    """One length of windows: seconds of each contender's steps, and what follows from them."""
    peaks = {dtype: MatrixPeak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    running = {name: Contender(name, tokens, fasta) for name in (*PEERS, OURS)}
    times: dict[str, list[float]] = {name: [] for name in running}
    for number in range(rounds + 1):
        for name, contender in running.items():
            seconds = contender.step()
            if number:  # the first step also allocates
                times[name].append(seconds)
        for peak in peaks.values():
            peak.measure(1)
    ends = {name: contender.finish() for name, contender in running.items()}
    losses = [end["loss"] for end in ends.values()]
    if max(losses) - min(losses) > 1e-3:
        raise RuntimeError(f"the losses of equal ids differ: {losses}")
    size = BATCHES[tokens]
    work = operations(tokens, size)
    result: dict[str, Any] = {"batch": size, "loss_difference": max(losses) - min(losses)}
    for name, end in ends.items():
        best, median = min(times[name]), statistics.median(times[name])
        peak = peaks[getattr(torch, end["dtype"])].best
        result[name] = {
            "tokens_per_second": {k: round(tokens * size / s) for k, s in pair(best, median)},
            "mfu": {k: round(work / s / peak, 3) for k, s in pair(best, median)},
            "dtype": end["dtype"],
            "memory_mb": end["memory_mb"],
        }
    for name in PEERS:
        ratios = {"best": min, "median": statistics.median}
        result[f"{OURS}_vs_{name.split()[1]}"] = {
            k: round(of(times[name]) / of(times[OURS]), 2) for k, of in ratios.items()
        }
    gflops = {str(dtype)[len("torch.") :]: round(p.best / 1e9) for dtype, p in peaks.items()}
    return result | {
        "matrix_peak_gflops": gflops,
        "rounds": rounds,
        "machine": inference.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }


def pair(best: float, median: float) -> tuple[tuple[str, float], tuple[str, float]]:
    """Named, as in the results."""
    return ("best", best), ("median", median)


def operations(tokens: int, size: int) -> float:
    """Of a step: three times those of the forward pass."""
    d = CONFIG.hidden_size
    head = 2 * SHARE * tokens * size * (d * d + d * CONFIG.vocab_size)
    return 3 * (flops(CONFIG, [tokens] * size) + head)


class Contender:
    """A process that makes a step when it is told to."""

    def __init__(self, name: str, tokens: int, fasta: Path) -> None:
        command = [sys.executable, __file__, "--contender", name, str(tokens), str(fasta)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def step(self) -> float:
        """Its seconds."""
        return self._answer("step")["seconds"]

    def finish(self) -> dict[str, Any]:
        """What it says of itself at its end."""
        last = self._answer("end")
        self.process.communicate()
        return last

    def _answer(self, order: str) -> dict[str, Any]:
        print(order, file=self.process.stdin)
        for line in self.process.stdout:
            if line.startswith('{"'):  # the Trainer prints too
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} came to an end")


class Turns:
    """The other end: waits for its turn before each step, and times what lies between."""

    def __init__(self) -> None:
        self.clock = math.nan

    def wait(self) -> bool:
        """Until told; false at the end."""
        more = sys.stdin.readline().strip() == "step"
        self.clock = time.perf_counter()
        return more

    def done(self) -> None:
        """Say how long the step took."""
        print(json.dumps({"seconds": time.perf_counter() - self.clock}), flush=True)


def contend(name: str, tokens: int, fasta: Path) -> None:
    """Be one of the contenders: steps in turn, then the memory and the loss of equal ids."""
    empty = inference._resident()
    model = own()
    kind = PEERS.get(name)
    dtype, loss = ours(tokens, fasta, model) if kind is None else theirs(tokens, fasta, model, kind)
    last = {
        "memory_mb": round(inference._peak() - empty),
        "dtype": str(dtype).removeprefix("torch."),
        "loss": loss,
    }
    print(json.dumps(last), flush=True)


def own() -> NucleotideTransformer:
    """The model with random weights; the same ones in every process."""
    torch.manual_seed(0)
    model = NucleotideTransformer(CONFIG)
    model.initialise()
    return model


def probe() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right ids, ids with some masked, and which: of a batch whose loss all are asked for."""
    rng = np.random.default_rng(1)
    ids = torch.from_numpy(rng.integers(6, 4102, (4, 128)))
    masked = torch.from_numpy(rng.random((4, 128)) < SHARE)
    return ids, ids.masked_fill(masked, MASK), masked


def ours(tokens: int, fasta: Path, model: NucleotideTransformer) -> tuple[torch.dtype, float]:
    """The loop of `cedilla pretrain`; what it computes in, and its first loss of the probe."""
    first = our_loss(model)
    schedule = Schedule(
        steps=LONGEST_STEPS, batch_size=BATCHES[tokens], learning_rate=1e-3, warmup=200, seed=0
    )
    tokenizer = Tokenizer.for_model(model)
    sampler = WindowSampler(read_genomes([str(fasta)]), length=(tokens - 1) * tokenizer.k)
    precision = Precision.of(CPU)
    trainer = Pretrainer(
        model, tokenizer, sampler, schedule, here=World(device=CPU), precision=precision
    )
    turns, step = Turns(), 0
    while turns.wait():
        trainer.step(step)
        step += 1
        turns.done()
    return precision.dtype, first


@torch.no_grad()
def our_loss(model: NucleotideTransformer) -> float:
    """Of the probe, in float32."""
    ids, corrupted, masked = probe()
    schedule = Schedule(steps=1, batch_size=4, learning_rate=1e-3, warmup=1, seed=0)
    objective = Objective(model.eval(), Precision("cpu", torch.float32), schedule)
    return objective(Masked(corrupted, ids, masked.float()))[0].item() / int(masked.sum())


def theirs(
    tokens: int, fasta: Path, model: NucleotideTransformer, more: dict[str, bool]
) -> tuple[torch.dtype, float]:
    """Hugging Face's Trainer, `more` being its arguments beside the defaults."""
    peer = hugging_face(model)
    first = their_loss(peer)
    turns = Turns()

    class InTurn(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.done()
            control.should_training_stop = not turns.wait()

    size = BATCHES[tokens]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = hugging_face_tokenizer(Path(folder), model)
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=LONGEST_STEPS,
            per_device_train_batch_size=size,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
            **more,
        )
        trainer = transformers.Trainer(
            peer,
            arguments,
            transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=SHARE),
            rows(tokenizer, fasta, tokens, 16 * size),
            callbacks=[InTurn()],
        )
        trainer.train()
    return torch.bfloat16 if more.get("bf16") else torch.float32, first


def hugging_face(model: NucleotideTransformer) -> torch.nn.Module:
    """Their masked language model of the same shape and weights, in eager attention."""
    encoder = inference.peer(model, "eager")
    encoder.config.tie_word_embeddings = False
    peer = transformers.EsmForMaskedLM(encoder.config)
    peer.esm = encoder
    peer.lm_head.load_state_dict(model.lm_head.state_dict())
    return peer


@torch.no_grad()
def their_loss(peer: torch.nn.Module) -> float:
    """Of the probe, in float32."""
    ids, corrupted, masked = probe()
    peer.eval()
    logits = peer(corrupted, attention_mask=torch.ones_like(ids)).logits
    return F.cross_entropy(logits[masked], ids[masked]).item()


def hugging_face_tokenizer(folder: Path, model: NucleotideTransformer) -> Any:
    """ESM's, with our vocabulary in its file."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(Tokenizer.for_model(model).vocabulary))
    return transformers.EsmTokenizer(str(path), eos_token=None, model_max_length=2048)


def rows(tokenizer: Any, fasta: Path, tokens: int, count: int) -> list[dict[str, list[int]]]:
    """Random windows as Hugging Face's tokenizer reads them."""
    text, length = fasta.read_text().splitlines()[1], (tokens - 1) * 6
    starts = np.random.default_rng(2).integers(0, len(text) - length, count)
    found = tokenizer([text[start : start + length] for start in starts])
    made = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    if any(len(row["input_ids"]) != tokens for row in made):
        raise RuntimeError("their windows have other lengths than ours")
    return made


def show(result: dict[str, Any]) -> None:
    """The results as a table."""
    table = Table(title=f"Pre-training, {CONFIG.num_hidden_layers} × {CONFIG.hidden_size}")
    for column in ("", "tokens/s, best", "median", "MFU", "MB", "ours, ×: best", "median"):
        table.add_column(column, justify="right" if column else "left")
    for tokens, found in result.items():
        for name in (*PEERS, OURS):
            speed, ratio = found[name]["tokens_per_second"], {"best": 1, "median": 1}
            if name != OURS:
                ratio = found[f"{OURS}_vs_{name.split()[1]}"]
            table.add_row(
                f"{name}, {tokens.replace('_', ' ')}",
                f"{speed['best']:,}",
                f"{speed['median']:,}",
                f"{found[name]['mfu']['best']:.1%}",
                f"{found[name]['memory_mb']:,}",
                f"{ratio['best']:.2f}",
                f"{ratio['median']:.2f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
