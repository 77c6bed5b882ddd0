"""Counts of k-mers, the baseline that every sequence model has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from cedilla.dna import alphabet

_N = alphabet.BASES.index("N")


@cache
def canonical_index(k: int) -> np.ndarray:
    """For each of the 4^k k-mers, in base-4 order of A C G T, the column it is counted in.

    A k-mer and its reverse complement share a column, so that both strands count alike.
    """
    codes = np.arange(4**k)
    digits = (codes[:, None] >> (2 * np.arange(k - 1, -1, -1))) & 3
    complement = ((3 - digits[:, ::-1]) << (2 * np.arange(k - 1, -1, -1))).sum(1)
    smaller = np.minimum(codes, complement)
    columns: np.ndarray = np.unique(smaller, return_inverse=True)[1]
    return columns


def count_kmers(sequences: Sequence[str], k: int = 4) -> np.ndarray:
    """Canonical k-mer counts (N, C) float32 of clean sequences; k-mers with an N are not counted.

    C is 136 for k = 4 and 2,080 for k = 6.
    """
    index = canonical_index(k)
    counts = np.zeros((len(sequences), int(index.max()) + 1), dtype=np.float32)
    weights = 4 ** np.arange(k - 1, -1, -1)
    for row, sequence in enumerate(sequences):
        codes = alphabet.encode(sequence)
        if len(codes) < k:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(codes, k)
        windows = windows[(windows != _N).all(1)]
        counts[row] = np.bincount(index[windows @ weights], minlength=counts.shape[1])
    return counts
