"""One species against several, and three sizes, at one budget of bases: the paper's question.

    CEDILLA_DATA=/path/to/data .venv/bin/python benchmarks/species_and_sizes.py runs/species

Hybrids of three sizes see the same number of bases, of human alone or of human, yeast, a parasite,
a fungus and a bacterium in equal shares. Every model is then scored on the same masked windows of
what is held out of human, and of each other species. Results: ``benchmarks/results/
species_and_sizes.json``. At this budget it says how a beginning goes, not where training ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import cedilla
from cedilla.dna.tokenizer import Tokenizer
from cedilla.files import write_json
from cedilla.run_directory import Run
from cedilla.training.genomes import WindowSampler, hold_out, read_genomes
from cedilla.training.precision import Precision
from cedilla.training.pretrainer import Objective, Schedule, held_out_set

RESULTS = Path(__file__).parent / "results" / "species_and_sizes.json"
SPECIES = {
    "human": "genomes/human_hg19_chrX_1-62Mb.fa.gz",
    "yeast": "genomes/yeast_chrI_chrII.fa.gz",
    "P. falciparum": "genomes/plasmodium_falciparum_MAL1-14.fa.gz",
    "U. maydis": "genomes/ustilago_maydis.fa.gz",
    "E. coli": "genomes/E.Coli_MG1655-K12.fa.gz",
}
MIXTURES = {"human": ["human"], "five species": list(SPECIES)}
SIZES = {
    "small": {"channels": 64, "hidden-size": 64, "heads": 2, "intermediate-size": 128},
    "medium": {"channels": 96, "hidden-size": 96, "heads": 4, "intermediate-size": 192},
    "large": {"channels": 160, "hidden-size": 160, "heads": 4, "intermediate-size": 320},
}
TOKENS, BATCH = 257, 32
SHARE = 0.05  # of the end of every contig, held out
WINDOWS = 512


def train(mixture: str, size: str, steps: int, out: Path) -> Path:
    """One pre-training on one thread, unless it is done."""
    path = out / f"{mixture}-{size}".replace(" ", "_")
    if Run(path).complete:
        return path
    settings = SIZES[size] | {
        "architecture": "hybrid",
        "layers": 2,
        "dilations": "1,2,4,8,16",
        "tokens": TOKENS,
        "batch-size": BATCH,
        "steps": steps,
        "warmup": steps // 10,
        "cooldown": steps // 2,
        "learning-rate": 0.002,
        "validation-share": SHARE,
        "checkpoint-every": steps,
        "out": path,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    words += [f"--genomes={SPECIES[name]}=1" for name in MIXTURES[mixture]]
    program = str(Path(sys.executable).with_name("cedilla"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([program, "pretrain", *words, "--resume"], check=True, env=environment)
    return path


@torch.no_grad()
def losses(path: Path) -> dict[str, float]:
    """The masked loss in nats per base on what is held out of each species."""
    model = cedilla.load(path / "checkpoints" / "best")
    schedule = Schedule(steps=1, batch_size=BATCH, learning_rate=1.0, warmup=1, seed=0)
    objective = Objective(model, Precision.of(torch.device("cpu")), schedule).eval()
    found = {}
    for name, file in SPECIES.items():
        sampler = WindowSampler(hold_out(read_genomes([file]), share=SHARE)[1], length=TOKENS - 1)
        masked = held_out_set(sampler, Tokenizer.for_model(model), WINDOWS)
        found[name] = (objective(masked)[0] / masked.weights.sum()).item()
    return found


def row(path: Path) -> dict[str, Any]:
    """What a run says of itself, and its losses."""
    facts: Mapping[str, Any] = Run(path).metrics
    events = Run(path).events()
    return {
        "parameters": sum(p.numel() for p in cedilla.load(path / "checkpoints/best").parameters()),
        "tokens": events[-1]["tokens"],
        "train_loss": events[-1]["train_loss"],
        "unigram_loss": facts["unigram_loss"],
        "losses": losses(path),
    }


def main() -> None:
    """Train what is not there, then score all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    cells = [(mixture, size) for size in SIZES for mixture in MIXTURES]
    with ThreadPoolExecutor(chosen.workers) as pool:
        paths = list(pool.map(lambda cell: train(*cell, chosen.steps, chosen.out), cells))
    results = {f"{m}, {s}": row(path) for (m, s), path in zip(cells, paths, strict=True)}
    write_json(RESULTS, {"steps": chosen.steps, "runs": results})


if __name__ == "__main__":
    main()
