"""Fine-tuning in full, with LoRA and with IA3, on three GUE tasks: scores, time and parameters.

    CEDILLA_DATA=/path/to/data .venv/bin/python benchmarks/methods.py runs/methods

The embedded model, by Cedilla's defaults; one thread a run; three seeds. The three smallest tasks
whose files are complete. Results: ``benchmarks/results/methods.json``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from cedilla.files import write_json
from cedilla.run_directory import Run

RESULTS = Path(__file__).parent / "results" / "methods.json"
TASKS = ("mouse/3", "mouse/2", "prom_core_tata")
METHODS = ("full", "lora", "ia3", "top", "head")


def fill(task: str, method: str, seed: int, out: Path) -> Run:
    """One fine-tuning, done unless it is."""
    run = Run(out / task.replace("/", "_") / f"{method}-{seed}")
    if not run.complete:
        program = str(Path(sys.executable).with_name("cedilla"))
        words = [f"--task={task}", f"--method={method}", f"--seed={seed}", f"--out={run.path}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [program, "finetune", "--model=mini", *words, "--resume"]
        subprocess.run(command, check=True, env=environment)
    return run


def row(runs: list[Run]) -> dict[str, Any]:
    """Scores of the seeds, and what they cost."""
    metrics = [run.metrics for run in runs]
    epochs = [[e for e in run.events() if e["event"] == "epoch"] for run in runs]
    return {
        "test_mcc": [m["test"]["mcc"] for m in metrics],
        "dev_mcc": [m["dev"]["mcc"] for m in metrics],
        "trainable": metrics[0]["trainable"],
        "parameters": metrics[0]["parameters"],
        "training_seconds": [round(sum(e["seconds"] for e in some)) for some in epochs],
    }


def main() -> None:
    """Fill what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    cells = list(product(TASKS, METHODS, range(chosen.seeds)))
    with ThreadPoolExecutor(chosen.workers) as pool:
        runs = dict(zip(cells, pool.map(lambda c: fill(*c, chosen.out), cells), strict=True))
    results = {
        task: {m: row([runs[task, m, seed] for seed in range(chosen.seeds)]) for m in METHODS}
        for task in TASKS
    }
    write_json(RESULTS, {"seeds": chosen.seeds, "tasks": results})


if __name__ == "__main__":
    main()
