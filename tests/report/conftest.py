"""Run directories as the verbs leave them, with random predictions of a chosen strength."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cedilla.metrics.classification import classification_metrics
from cedilla.run_directory import Run

SIZES = {"train": 800, "dev": 100, "test": 400}
ARMS = {
    "sequence": 0.722,
    "beta": 0.825,
    "sequence+beta": 0.841,
    "sequence+annotation": 0.768,
    "sequence+annotation+beta": 0.851,
    "shuffled": 0.718,
    "missing": 0.715,
    "beta threshold": 0.823,
}
PAIRS = (
    ("sequence+annotation+beta", "sequence+annotation"),
    ("sequence+beta", "sequence"),
    ("shuffled", "sequence"),
    ("missing", "sequence"),
)
SCALES = {"auroc": 1.0, "auprc": 0.98, "mcc": 0.62}

Maker = Callable[..., dict[str, Any]]


def _predictions(rng: np.random.Generator, split: str, strength: float) -> pd.DataFrame:
    labels = (rng.random(SIZES[split]) < 0.5).astype(int)
    logits = strength * (2 * labels - 1) + rng.normal(size=len(labels))
    table = pd.DataFrame({"id": [f"{split}{i}" for i in range(len(labels))], "label": labels})
    table["probability"] = 1 / (1 + np.exp(-2 * logits))
    return table.assign(split=split, seed=0, group="chr1", block=None)


def _scores(table: pd.DataFrame) -> dict[str, float]:
    return classification_metrics(table["label"], table["probability"])


def _log_epochs(run: Run, rng: np.random.Generator, epochs: int, strength: float) -> None:
    for epoch in range(1, epochs + 1):
        dev = _scores(_predictions(rng, "dev", strength * epoch / epochs))
        loss = {"train_loss": 0.69 / epoch, "dev_loss": 0.7 / epoch**0.8}
        run.log(event="epoch", epoch=epoch, **loss, dev=dev, seconds=4.2)


def _finetuned(
    path: Path,
    *,
    strength: float = 1.5,
    model: str = "mini",
    task: str | None = None,
    protocol: str | None = None,
    weights: str = "pretrained",
    epochs: int = 3,
    seed: int = 0,
    **noted: Any,
) -> dict[str, Any]:
    """A complete ``finetune`` run; returns its metrics."""
    rng = np.random.default_rng(seed)
    config = {"model": model, "task": task, "weights": weights, "seed": seed, "batch_size": 16}
    run = Run.start(path, verb="finetune", config=config)
    run.note(seed=seed, **noted)
    _log_epochs(run, rng, epochs, strength)
    metrics: dict[str, Any] = {}
    for split in SIZES:
        table = _predictions(rng, split, strength)
        run.write_predictions(split, table)
        metrics[split] = _scores(table)
    test = metrics["test"]
    bounds = {k: [test[k] - 0.021, min(test[k] + 0.02, 1)] for k in ("auroc", "auprc", "mcc")}
    metrics |= {"intervals": {"test": bounds}, "model": model, "task": task, "protocol": protocol}
    metrics |= {"method": "lora" if epochs else None, "best_epoch": epochs, "epochs": epochs}
    run.finish(metrics | {"trainable": 61_442, "parameters": 1_204_233})
    return Run(path).metrics


def _compared(path: Path, *, seed: int = 0, **noted: Any) -> dict[str, Any]:
    """A complete ``compare`` run; returns its metrics."""
    rng = np.random.default_rng(seed)
    run = Run.start(path, verb="compare", config={"model": "mini", "seeds": 3})
    run.note(seeds=[0, 1, 2], left_out={"no beta": 1_469}, **noted)
    arms: dict[str, Any] = {}
    for arm, auroc in ARMS.items():
        value = {metric: auroc * scale for metric, scale in SCALES.items()}
        seeds = {metric: list(v + rng.normal(0, 0.004, 3)) for metric, v in value.items()}
        bounds = {metric: [v - 0.014, v + 0.013] for metric, v in value.items()}
        spread = {metric: float(np.std(seeds[metric], ddof=1)) for metric in seeds}
        arms[arm] = value | {"interval": bounds, "seeds": seeds, "sd": spread}
    verdict = {
        "call": "adds",
        "sentence": "Methylation adds 0.083 AUROC to sequence and annotation.",
        "limits": ["Tested on promoter-proximal probes.", "Betas are population medians."],
    }
    run.finish(
        {
            "label": "gm12878_H3K4me3",
            "beta": "beta_median_sesame450k",
            "model": "mini",
            "prevalence": 0.55,
            "n": {"train": 17_200, "dev": 2_300, "test": 4_100},
            "arms": arms,
            "differences": [
                _difference(arms, arm, against, m) for arm, against in PAIRS for m in SCALES
            ],
            "verdict": verdict,
        }
    )
    return Run(path).metrics


def _difference(arms: dict[str, Any], arm: str, against: str, metric: str) -> dict[str, Any]:
    d = arms[arm][metric] - arms[against][metric]
    pair = {"arm": arm, "against": against, "metric": metric, "difference": d}
    clear = abs(d) > 0.012
    more = {"p": 0.0004 if clear else 0.31, "smallest_detectable": 0.017}
    return pair | {"low": d - 0.012, "high": d + 0.012} | more


@pytest.fixture(scope="session")
def finetuned() -> Maker:
    return _finetuned


@pytest.fixture(scope="session")
def compared() -> Maker:
    return _compared


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``cedilla run`` leaves: a parent directory with one run for each step."""
    root = tmp_path_factory.mktemp("runs") / "guide"
    parent = Run.start(root, verb="run", config={"title": "The guide's experiment", "steps": []})
    parent.note(
        title="The guide's experiment",
        about="A small DNA language model with and without methylation.",
        left_out=["EMP/H3K4me3, its train file is absent: `cedilla data get EMP/H3K4me3`"],
        short=True,
    )
    _compared(root / "h3k4me3")
    core = {"task": "prom/prom_core_all", "protocol": "same protocol"}
    _finetuned(root / "gue/core-mini", strength=1.0, seed=3, **core)
    _finetuned(root / "gue/core-cnn", strength=1.2, model="cnn", epochs=0, seed=4, **core)
    yeast = {"task": "EMP/H3K4me3", "protocol": "not comparable"}
    _finetuned(root / "gue/yeast-mini", strength=0.3, epochs=0, seed=6, **yeast)
    _finetuned(root / "guide-clean", strength=2.6, synthetic=True)
    table = root / "table.csv"
    table.write_text("sequence,label\nACGT,1\n")
    run = Run(root / "h3k4me3")
    run.manifest = json.loads((run.path / "manifest.json").read_text())
    run.note_data(table, role="table", rows=23_600)
    return root
