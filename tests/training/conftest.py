"""Labelled sequences with a planted motif, and models small enough to learn it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cedilla.models import zoo
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory

MOTIFS = ("", "ACGACGACGACGACGACG", "TTGTTGTTGTTGTTGTTG")
SIZES = {"train": 128, "dev": 40, "test": 48}
Tables = dict[str, Path]


def planted(n: int, *, classes: int, seed: int, length: int = 60) -> pd.DataFrame:
    """Random sequences in which a motif stands at a place of its own; the label says which."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    sequences = []
    for label in labels:
        bases, motif = "".join(rng.choice(list("ACGT"), length)), MOTIFS[label]
        at = rng.integers(0, length - len(motif) + 1)
        sequences.append(bases[:at] + motif + bases[at + len(motif) :])
    return pd.DataFrame({"sequence": sequences, "label": labels})


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Models this small are slower on two threads, much slower where these are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def make_tables(tmp_path_factory) -> Callable[..., Tables]:
    """Write train, dev and test as CSV.gz; the paths are keywords of the verb."""

    def _make(classes: int = 2, noise: float = 0.0) -> Tables:
        folder = tmp_path_factory.mktemp("tables")
        paths = {}
        for seed, (split, n) in enumerate(SIZES.items()):
            table = planted(n, classes=classes, seed=seed)
            wrong = np.random.default_rng(seed).random(n) < noise
            table.loc[wrong, "label"] = (table.loc[wrong, "label"] + 1) % classes
            paths[split] = folder / f"{split}.csv.gz"
            table.to_csv(paths[split], index=False)
        return paths

    return _make


@pytest.fixture(scope="session")
def tables(make_tables) -> Tables:
    return make_tables()


@pytest.fixture(scope="session")
def noisy_tables(make_tables) -> Tables:
    """A third of the labels are wrong, so that dev gets worse while train gets better."""
    return make_tables(noise=0.33)


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


@pytest.fixture
def small_cnn(monkeypatch):
    """The zoo's cnn, 16 wide."""
    shape = CNNConfig(hidden_size=16, num_hidden_layers=2)
    monkeypatch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
