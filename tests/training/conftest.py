"""Labelled sequences with a planted motif, and models small enough to learn it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cedilla.models import zoo
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory

MOTIFS = ("", "ACGACGACGACGACG", "TTGTTGTTGTTGTTG")
SIZES = {"train": 96, "dev": 40, "test": 48}


@dataclass(frozen=True)
class Tables:
    """The three files of a fine-tuning, as keywords of the verb."""

    train: Path
    dev: Path
    test: Path

    @property
    def keywords(self) -> dict[str, Path]:
        return {"train": self.train, "dev": self.dev, "test": self.test}


def planted(n: int, *, classes: int = 2, length: int = 60, seed: int = 0) -> pd.DataFrame:
    """Random sequences; the label says which motif stands in it, at a place of its own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rows = []
    for label in labels:
        bases = "".join(rng.choice(list("ACGT"), length))
        motif = MOTIFS[label]
        at = rng.integers(0, length - len(motif) + 1)
        rows.append(bases[:at] + motif + bases[at + len(motif) :])
    order = rng.permutation(n)
    return pd.DataFrame({"sequence": rows, "label": labels}).iloc[order].reset_index(drop=True)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_cnn(monkeypatch):
    """The zoo's cnn, 16 wide."""
    shape = CNNConfig(hidden_size=16, num_hidden_layers=2)
    monkeypatch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))


@pytest.fixture
def make_tables(tmp_path) -> Callable[..., Tables]:
    def _make(classes: int = 2, sizes: dict[str, int] = SIZES) -> Tables:
        paths = {}
        for number, (split, n) in enumerate(sizes.items()):
            paths[split] = tmp_path / f"{split}.csv.gz"
            planted(n, classes=classes, seed=number).to_csv(paths[split], index=False)
        return Tables(**paths)

    return _make


@pytest.fixture
def tables(make_tables) -> Tables:
    return make_tables()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A Nucleotide Transformer of two layers of 32, over 3-mers, with random weights."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    model = NucleotideTransformer(
        NTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            vocab_size=75,
            max_position_embeddings=66,
        )
    )
    model.initialise()
    save_directory(model, path)
    return path
