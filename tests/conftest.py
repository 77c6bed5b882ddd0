"""Sequences and models that tests of several folders are made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cedilla.models.hybrid import Hybrid, HybridConfig
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory


@pytest.fixture(scope="session")
def dna() -> Callable[..., str]:
    """dna(length, seed, n=0): random bases, `n` of them replaced by N."""

    def make(length: int, seed: int, n: int = 0) -> str:
        rng = np.random.default_rng(seed)
        letters = rng.choice(list("ACGT"), size=length)
        letters[rng.choice(length, size=n, replace=False)] = "N"
        return "".join(letters)

    return make


@pytest.fixture(scope="session")
def three_mers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Nucleotide Transformer over 3-mers of 2 layers that takes 127 tokens, random weights."""
    torch.manual_seed(0)
    config = NTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=75,
        max_position_embeddings=129,
    )
    return _saved(NucleotideTransformer(config), tmp_path_factory.mktemp("models") / "three_mers")


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid of 2 convolutions and 2 layers that takes 64 tokens, random weights."""
    torch.manual_seed(0)
    config = HybridConfig(
        hidden_size=16,
        stem_width=5,
        dilations=(1, 2),
        stride=3,
        block_size=24,
        num_attention_heads=2,
        intermediate_size=32,
        max_tokens=64,
    )
    return _saved(Hybrid(config), tmp_path_factory.mktemp("models") / "hybrid")


def _saved(model: NucleotideTransformer | Hybrid, path: Path) -> Path:
    """Random weights far from zero, so that answers differ from place to place."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    save_directory(model, path)
    return path
