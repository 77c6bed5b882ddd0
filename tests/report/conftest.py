"""Run directories as the verbs leave them, with random predictions of a chosen strength."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from cedilla.run_directory import Run

SIZES = {"train": 800, "dev": 100, "test": 400}


def scores(labels: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    called = (probability > 0.5).astype(int)
    return {
        "accuracy": sk.accuracy_score(labels, called),
        "f1": sk.f1_score(labels, called),
        "precision": sk.precision_score(labels, called),
        "recall": sk.recall_score(labels, called),
        "mcc": sk.matthews_corrcoef(labels, called),
        "auroc": sk.roc_auc_score(labels, probability),
        "auprc": sk.average_precision_score(labels, probability),
        "n": len(labels),
        "prevalence": labels.mean(),
    }


def predictions(rng: np.random.Generator, split: str, strength: float) -> pd.DataFrame:
    labels = (rng.random(SIZES[split]) < 0.5).astype(int)
    logit = strength * (2 * labels - 1) + rng.normal(size=len(labels))
    return pd.DataFrame(
        {
            "id": [f"{split}{i}" for i in range(len(labels))],
            "label": labels,
            "probability": 1 / (1 + np.exp(-2 * logit)),
            "split": split,
            "seed": 0,
            "group": "chr1",
            "block": None,
        }
    )


def finetuned(
    path: Path,
    *,
    strength: float = 1.5,
    model: str = "mini",
    task: str | None = None,
    protocol: str | None = None,
    epochs: int = 3,
    seed: int = 0,
    **noted: Any,
) -> dict[str, Any]:
    """A complete ``finetune`` run; returns its metrics."""
    rng = np.random.default_rng(seed)
    config = {"model": model, "task": task, "seed": seed, "lr": 5e-5, "batch_size": 16}
    run = Run.start(path, verb="finetune", config=config)
    run.note(seed=seed, **noted)
    for epoch in range(1, epochs + 1):
        dev = predictions(rng, "dev", strength * epoch / epochs)
        run.log(
            event="epoch",
            epoch=epoch,
            train_loss=0.69 / epoch,
            dev_loss=0.7 / epoch**0.8,
            dev=scores(dev.label.to_numpy(), dev.probability.to_numpy()),
            seconds=4.2,
        )
    metrics: dict[str, Any] = {}
    for split in SIZES:
        table = predictions(rng, split, strength)
        run.write_predictions(split, table)
        metrics[split] = scores(table.label.to_numpy(), table.probability.to_numpy())
    keys = ("accuracy", "f1", "precision", "recall", "mcc", "auroc", "auprc")
    bounds = {
        key: [metrics["test"][key] - 0.021, min(metrics["test"][key] + 0.02, 1)] for key in keys
    }
    metrics |= {
        "intervals": {"test": bounds},
        "model": model,
        "method": "lora" if model == "mini" else None,
        "task": task,
    }
    metrics |= {"protocol": protocol, "trainable": 61_442, "parameters": 1_204_233}
    metrics |= {"best_epoch": epochs, "epochs": epochs}
    run.finish(metrics)
    return Run(path).metrics


ARMS = {
    "sequence": 0.722,
    "beta": 0.825,
    "sequence+beta": 0.841,
    "sequence+annotation": 0.768,
    "sequence+annotation+beta": 0.851,
    "shuffled": 0.718,
    "missing": 0.715,
}
PAIRS = (
    ("sequence+beta", "sequence"),
    ("sequence+annotation+beta", "sequence+annotation"),
    ("sequence+beta", "beta"),
    ("shuffled", "sequence"),
    ("missing", "sequence"),
)


def compared(path: Path, *, seed: int = 0, **noted: Any) -> dict[str, Any]:
    """A complete ``compare`` run; returns its metrics."""
    rng = np.random.default_rng(seed)
    run = Run.start(path, verb="compare", config={"model": "mini", "seeds": 3, "beta": "beta"})
    run.note(seeds=[0, 1, 2], **noted)
    arms, scale = {}, {"auroc": 1.0, "auprc": 0.98, "mcc": 0.62}
    for arm, auroc in ARMS.items():
        value = {key: auroc * factor for key, factor in scale.items()}
        seeds = {key: list(v + rng.normal(0, 0.004, 3)) for key, v in value.items()}
        bounds = {key: [v - 0.014, v + 0.013] for key, v in value.items()}
        spread = {key: float(np.std(seeds[key], ddof=1)) for key in seeds}
        arms[arm] = {**value, "interval": bounds, "seeds": seeds, "sd": spread}
    differences = [
        {
            "arm": arm,
            "against": against,
            "metric": metric,
            "difference": (d := arms[arm][metric] - arms[against][metric]),
            "low": d - 0.012,
            "high": d + 0.012,
            "p": 0.0004 if abs(d) > 0.012 else 0.31,
            "smallest_detectable": 0.017,
        }
        for arm, against in PAIRS
        for metric in scale
    ]
    sentence = "Beta adds 0.119 AUROC to sequence, and 0.083 to sequence with annotation."
    run.finish(
        {
            "label": "gm12878_H3K4me3",
            "beta": "beta_median_sesame450k",
            "model": "mini",
            "prevalence": 0.55,
            "n": {"train": 17_200, "dev": 2_300, "test": 4_100},
            "arms": arms,
            "differences": differences,
            "verdict": {
                "call": "adds",
                "sentence": sentence,
                "limits": ["Probes are promoter-proximal.", "Betas are population medians."],
            },
        }
    )
    return Run(path).metrics


@pytest.fixture(scope="session")
def make_finetuned() -> Callable[..., dict[str, Any]]:
    return finetuned


@pytest.fixture(scope="session")
def make_compared() -> Callable[..., dict[str, Any]]:
    return compared


@pytest.fixture(scope="session")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``cedilla run`` leaves: a parent directory with one run for each part."""
    root = tmp_path_factory.mktemp("run") / "demo"
    parent = Run.start(root, verb="run", config={"runs": ["guide", "h3k4me3", "gue"], "seed": 0})
    parent.note(
        title="The guide's experiment",
        about="A small DNA language model, fine-tuned and compared with and without methylation.",
        left_out=["EMP/H3K4me3, full train file (8 MB): `cedilla run configs/gue.yaml`"],
        short=True,
    )
    finetuned(root / "guide-clean", strength=2.6, synthetic=True, epochs=5)
    finetuned(root / "guide-noisy", strength=0.8, synthetic=True, epochs=4, seed=1)
    compared(root / "guide-arms", seed=2, synthetic=True)
    compared(root / "h3k4me3")
    core = {"task": "prom/prom_core_all", "protocol": "same protocol"}
    finetuned(root / "gue/core-mini", strength=1.0, seed=3, **core)
    finetuned(root / "gue/core-cnn", strength=1.05, model="cnn", seed=4, **core)
    finetuned(root / "gue/core-kmer", strength=0.7, model="kmer", epochs=0, seed=5, **core)
    yeast = {"task": "EMP/H3K4me3", "protocol": "not comparable"}
    finetuned(root / "gue/H3K4me3-mini", strength=0.3, seed=6, **yeast)
    data = root / "table.csv"
    data.write_text("sequence,label\n")
    run = Run(root / "h3k4me3")
    run.manifest = find_manifest(run.path)
    run.note_data(data, role="table", rows=23_600)
    data.unlink()
    return root


def find_manifest(path: Path) -> dict[str, Any]:
    import json

    return dict(json.loads((path / "manifest.json").read_text()))
