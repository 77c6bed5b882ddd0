"""Sequences, files and a straightforward computation that inference is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.zoo import load

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much to them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A model of 3 layers that takes 64 tokens, 63 of them 6-mers."""
    return GOLDEN / "nt_v2_tiny"


class Naive:
    """A model run on one sequence at a time, with nothing clever about it."""

    def __init__(self, model: NucleotideTransformer) -> None:
        self.model = model
        self.tokenizer = Tokenizer.for_model(model)

    @torch.no_grad()
    def states(self, text: str) -> np.ndarray:
        """(layers, 1 + L, D), ``<cls>`` first."""
        ids, mask = self.tokenizer.encode([text])
        states = self.model(ids, mask, hidden_states=True).hidden_states
        return torch.cat(states).numpy()

    def tokens(self, text: str) -> list[str]:
        """The tokens of a sequence of any length, without ``<cls>``."""
        (ids,) = self.tokenizer.encode_ragged([text])
        return [self.tokenizer.vocabulary[i] for i in ids[1:]]

    def stitched(self, text: str, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Each token (layers, T, D) from the tile where it is furthest from where that was cut, and
        the tiles' ``<cls>`` (layers, tiles, D)."""
        tokens = self.tokens(text)
        size = min(len(tokens), self.tokenizer.max_tokens - 1)
        tiles = [self.states("".join(tokens[s : s + size])) for s in starts]
        rows = []
        for t in range(len(tokens)):
            depths = [
                min(
                    t - s if s else len(tokens),
                    s + size - 1 - t if s + size < len(tokens) else len(tokens),
                )
                for s in starts
            ]
            best = max(i for i, depth in enumerate(depths) if depth == max(depths))
            rows.append(tiles[best][:, 1 + t - starts[best]])
        return np.stack(rows, axis=1), np.stack([tile[:, 0] for tile in tiles], axis=1)


@pytest.fixture(scope="session")
def naive() -> Callable[[str | Path], Naive]:
    """naive(name or directory): the straightforward computation of a model."""
    return lambda name: Naive(load(name))
