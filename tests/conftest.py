"""Sequences that tests of several folders are made from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def dna() -> Callable[..., str]:
    """dna(length, seed, n=0): random bases, `n` of them replaced by N."""

    def make(length: int, seed: int, n: int = 0) -> str:
        rng = np.random.default_rng(seed)
        letters = rng.choice(list("ACGT"), size=length)
        letters[rng.choice(length, size=n, replace=False)] = "N"
        return "".join(letters)

    return make
