"""The embedded model on the nine GUE tasks whose files are complete, beside baselines.

    CEDILLA_DATA=/path/to/data .venv/bin/python benchmarks/gue.py runs/gue-table

On each task and seed: `mini` fine-tuned by Cedilla's defaults, the same from random weights, and
the dilated CNN from scratch by the same defaults; once, a logistic regression on k-mers. Beside
them stand the published values. Every cell is one ``cedilla finetune`` on one thread, `--workers`
at a time; cells that are done are kept, so that the script can be stopped and started again. The
last epoch is kept; test is predicted once, at the end of a cell. p-values are of a paired
bootstrap over test sequences, of the mean over seeds. Results: ``benchmarks/results/gue.json``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cedilla.evaluation.confidence import paired_block_bootstrap
from cedilla.files import sha256, write_json, write_text
from cedilla.models.zoo import EMBEDDED
from cedilla.progress import console
from cedilla.run_directory import Run
from cedilla.tasks.published import published

RESULTS = Path(__file__).parent / "results" / "gue.json"
# The quick ones first: a table with a few whole rows is worth more than one with many half ones.
TASKS = (
    "mouse/3",
    "mouse/2",
    "prom_core_tata",
    "mouse/0",
    "tf/2",
    "tf/0",
    "tf/1",
    "prom_core_all",
    "prom_300_tata",
)
ARMS: dict[str, list[str]] = {
    "mini": ["--model", "mini"],
    "random": ["--model", "mini", "--weights", "random"],
    "cnn": ["--model", "cnn"],
    "kmer": ["--model", "kmer"],
}
SHOWN = ("DNABERT-2", "NT-500M-human")
DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One fine-tuning: a task, an arm and a seed."""

    task: str
    arm: str
    seed: int

    def path(self, out: Path) -> Path:
        """The run directory."""
        return out / self.task.replace("/", "_") / f"{self.arm}-{self.seed}"

    def command(self, out: Path) -> list[str]:
        """The command that fills it."""
        words = ["finetune", "--task", self.task, *ARMS[self.arm], "--seed", str(self.seed)]
        program = str(Path(sys.executable).with_name("cedilla"))
        return [program, *words, "--out", str(self.path(out)), "--resume"]


def same_weights(out: Path) -> None:
    """Refuse cells of another `mini`: its hash is kept beside them."""
    note, now = out / "mini.sha256", sha256(EMBEDDED / "mini" / "model.safetensors")
    if note.exists() and note.read_text() != now:
        sys.exit(f"{out} holds cells of another mini: choose another folder")
    write_text(note, now)


def cells(tasks: Sequence[str], arms: Sequence[str], seeds: int) -> Iterator[Cell]:
    """Every cell, the first seed of all tasks before the others; k-mers are alike at every seed."""
    for some in (range(1), range(1, seeds)):
        for task in tasks:
            for seed in some:
                yield from (Cell(task, arm, seed) for arm in arms if arm != "kmer" or not seed)


def fill(cell: Cell, out: Path) -> None:
    """Run a cell unless it is done."""
    path = cell.path(out)
    if Run(path).complete:
        return
    path.mkdir(parents=True, exist_ok=True)
    with (path.parent / f"{path.name}.log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(
            cell.command(out), stdout=log, stderr=log, env=environment, check=False
        ).returncode
    if code:
        console.print(f"{path}: failed, see {log.name}")
        return
    score = Run(path).metrics["test"]["mcc"]
    console.print(f"{cell.task} {cell.arm} seed {cell.seed}: test MCC {score:.3f}")


def summary(tasks: Sequence[str], out: Path, seeds: int) -> dict[str, Any]:
    """A row a task: every arm's scores, differences with p, and what is published."""
    weights = EMBEDDED / "mini" / "model.safetensors"
    return {
        "mini_sha256": sha256(weights),
        "seeds": seeds,
        "tasks": {task: _row(task, out, seeds) for task in tasks},
    }


def _row(task: str, out: Path, seeds: int) -> dict[str, Any]:
    done = {
        arm: [run for s in range(seeds) if (run := Run(Cell(task, arm, s).path(out))).complete]
        for arm in ARMS
    }
    known = published(task)
    best = known.iloc[int(known["value_0to1"].argmax())]
    shown = known[known["model"].isin(SHOWN)]
    return {
        "arms": {arm: _scores(runs) for arm, runs in done.items() if runs},
        "differences": {
            arm: difference
            for arm in ("random", "cnn", "kmer")
            if (difference := _difference(done["mini"], done[arm])) is not None
        },
        "published": dict(zip(shown["model"], shown["value_0to1"], strict=True)),
        "best_published": {"model": str(best["model"]), "mcc": float(best["value_0to1"])},
    }


def _scores(runs: Sequence[Run]) -> dict[str, Any]:
    """Of the seeds: MCC and AUROC on test, MCC on dev, epochs and seconds of training."""
    metrics = [run.metrics for run in runs]
    epochs = [[e for e in run.events() if e["event"] == "epoch"] for run in runs]
    return {
        "test_mcc": [m["test"]["mcc"] for m in metrics],
        "test_auroc": [m["test"]["auroc"] for m in metrics],
        "dev_mcc": [m["dev"]["mcc"] for m in metrics],
        "best_epoch": [m["best_epoch"] for m in metrics],
        "training_seconds": [round(sum(e["seconds"] for e in some)) for some in epochs],
        "trainable": metrics[0]["trainable"],
    }


def _difference(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, float] | None:
    """Of the mean MCC over the seeds that are done; None until there is one on both sides."""
    if not ours or not theirs:
        return None
    labels, a = _test(ours)
    _, b = _test(theirs)
    found = paired_block_bootstrap(labels, a, b, None, metrics=("mcc",), draws=DRAWS)["mcc"]
    return {key: float(value) for key, value in asdict(found).items()}


def _test(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and probabilities (seeds, N) on test, in the order of the ids."""
    paths = [run.path / "predictions" / "test.parquet" for run in runs]
    frames = [pd.read_parquet(path).sort_values("id", kind="stable") for path in paths]
    return frames[0]["label"].to_numpy(), np.stack([f["probability"] for f in frames])


def main() -> None:
    """Fill the cells, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=tuple(ARMS), choices=tuple(ARMS))
    chosen = parser.parse_args()
    same_weights(chosen.out)
    wanted = list(cells(chosen.tasks, chosen.arms, chosen.seeds))
    with ThreadPoolExecutor(chosen.workers) as pool:
        list(pool.map(lambda cell: fill(cell, chosen.out), wanted))
    done = [task for task in chosen.tasks if Run(Cell(task, "mini", 0).path(chosen.out)).complete]
    write_json(RESULTS, summary(done, chosen.out, chosen.seeds))
    if any(not Run(cell.path(chosen.out)).complete for cell in wanted):
        sys.exit("some cells failed: see their logs, then start again")


if __name__ == "__main__":
    main()
