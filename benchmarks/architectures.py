"""Which architecture to pre-train: four on GUE at one budget of bases, without its test sets.

    CEDILLA_DATA=/path/to/data .venv/bin/python benchmarks/architectures.py runs/architectures

Each model sees the same bases of human chromosome X, then is fine-tuned by Cedilla's defaults, from
these weights and from random ones. The training file of a task is cut in three: to train, to
choose the epoch, to score; the task's own dev and test files stay closed. One thread and one seed
each. Results: ``benchmarks/results/architectures.json``. At this budget it says how a beginning
goes, not where training ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

import cedilla
from cedilla.files import write_json
from cedilla.run_directory import Run
from cedilla.training.splits import find_files

RESULTS = Path(__file__).parent / "results" / "architectures.json"
GENOME = "genomes/human_hg19_chrX_1-62Mb.fa.gz"
TASKS = ("mouse/0", "prom_core_tata")
EPOCHS = 10  # fewer than by default: the order of the candidates is what is asked
WINDOW, BATCH = 252, 64  # bases, and windows a step
BLOCKS = {"hidden-size": 128, "heads": 4, "intermediate-size": 256}
CONVOLUTIONS = {"architecture": "hybrid", "tokens": WINDOW + 1, "channels": 128}
CANDIDATES: dict[str, dict[str, Any]] = {
    "6-mers, 4 blocks": BLOCKS | {"k": 6, "layers": 4, "tokens": WINDOW // 6 + 1},
    "3-mers, 4 blocks": BLOCKS | {"k": 3, "layers": 4, "tokens": WINDOW // 3 + 1},
    "bases, 6 convolutions": CONVOLUTIONS | {"layers": 0, "dilations": "1,2,4,8,16,32"},
    "bases, 5 convolutions and 2 blocks": CONVOLUTIONS
    | BLOCKS
    | {"layers": 2, "dilations": "1,2,4,8,16"},
}
WEIGHTS = ("pretrained", "random")


def call(verb: str, settings: dict[str, Any]) -> None:
    """One verb of the command line, on one thread, to its end."""
    words = [f"--{key}={value}" for key, value in settings.items()]
    program = str(Path(sys.executable).with_name("cedilla"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([program, verb, *words, "--resume"], check=True, env=environment)


def pretrained(name: str, steps: int, out: Path) -> Path:
    """The run directory of a candidate, pre-trained unless it is."""
    path = out / name.replace(", ", "-").replace(" ", "_")
    schedule = {"steps": steps, "warmup": steps // 10, "cooldown": steps // 2}
    fixed = {"genomes": GENOME, "batch-size": BATCH, "learning-rate": 0.002, "random-start": 0}
    last = {"validation-share": 0.05, "checkpoint-every": steps, "out": path / "pretraining"}
    if not Run(path / "pretraining").complete:
        call("pretrain", CANDIDATES[name] | schedule | fixed | last)
    return path


def parts(task: str, out: Path) -> dict[str, Path]:
    """Seven tenths of the task's training rows, and two parts of the rest, as tables."""
    paths = {
        name: out / f"{task.replace('/', '_')}-{name}.csv" for name in ("train", "dev", "test")
    }
    if not paths["test"].exists():
        file = find_files(task, data_dir=None, train_on_dev=False)[0]["train"]
        rows = pd.read_csv(file).sample(frac=1, random_state=0)
        ends = [int(len(rows) * share) for share in (0.7, 0.85, 1)]
        for path, first, last in zip(paths.values(), [0, *ends], ends, strict=False):
            rows.iloc[first:last].to_csv(path, index=False)
    return paths


def tuned(path: Path, task: str, weights: str, out: Path) -> Run:
    """A fine-tuning, done unless it is."""
    run = Run(path / f"{task.replace('/', '_')}-{weights}")
    if not run.complete:
        model = {"model": path / "pretraining/checkpoints/best", "weights": weights}
        call("finetune", parts(task, out) | model | {"epochs": EPOCHS, "out": run.path})
    return run


def row(name: str, out: Path, steps: int) -> dict[str, Any]:
    """Pre-train and fine-tune a candidate; what came of it."""
    path = pretrained(name, steps, out)
    scores: dict[str, Any] = {}
    for task in TASKS:
        runs = {weights: tuned(path, task, weights, out) for weights in WEIGHTS}
        scores[task] = {
            weights: {
                "mcc": run.metrics["test"]["mcc"],
                "auroc": run.metrics["test"]["auroc"],
                "seconds": sum(e["seconds"] for e in run.events() if e["event"] == "epoch"),
            }
            for weights, run in runs.items()
        }
    model = cedilla.load(path / "pretraining/checkpoints/best")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bases": steps * BATCH * WINDOW,
        "pretraining_seconds": sum(e["seconds"] for e in Run(path / "pretraining").events()),
        "tasks": scores,
    }


def main() -> None:
    """Fill what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        parts(task, chosen.out)
    with ThreadPoolExecutor(chosen.workers) as pool:
        found = pool.map(lambda name: row(name, chosen.out, chosen.steps), CANDIDATES)
        rows = dict(zip(CANDIDATES, found, strict=True))
    write_json(RESULTS, {"tasks": list(TASKS), "candidates": rows})


if __name__ == "__main__":
    main()
