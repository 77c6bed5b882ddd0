"""Counts of k-mers: both strands alike, N left out, equal to counting by hand."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna.alphabet import reverse_complement
from cedilla.models.kmers import canonical_index, count_kmers


def by_hand(sequence: str, k: int) -> list[int]:
    kmers = ["".join(bases) for bases in product("ACGT", repeat=k)]
    canonical = [kmer for kmer in kmers if kmer <= reverse_complement(kmer)]
    counts = Counter(
        min(kmer, reverse_complement(kmer))
        for kmer in (sequence[i : i + k] for i in range(len(sequence) - k + 1))
        if "N" not in kmer
    )
    return [counts[kmer] for kmer in canonical]


@pytest.mark.parametrize(("k", "columns"), [(1, 2), (2, 10), (3, 32), (4, 136), (6, 2080)])
def test_a_kmer_shares_its_column_with_its_reverse_complement(k, columns):
    index = canonical_index(k)
    assert index.shape == (4**k,)
    assert set(index.tolist()) == set(range(columns))
    kmers = ["".join(bases) for bases in product("ACGT", repeat=k)]
    column = dict(zip(kmers, index.tolist(), strict=True))
    assert all(column[kmer] == column[reverse_complement(kmer)] for kmer in kmers)
    assert np.bincount(index).max() <= 2


@given(sequence=st.text("ACGTN", max_size=40), k=st.integers(1, 4))
def test_counts_equal_those_by_hand(sequence, k):
    counts = count_kmers([sequence], k)
    assert counts.dtype == np.float32
    assert counts[0].tolist() == by_hand(sequence, k)


@given(sequence=st.text("ACGTN", max_size=40))
def test_both_strands_count_alike(sequence):
    both = count_kmers([sequence, reverse_complement(sequence)], 3)
    assert np.array_equal(both[0], both[1])


def test_sequences_too_short_or_unknown_count_nothing():
    assert count_kmers(["", "ACG", "NNNNNN"], 4).sum() == 0
    assert count_kmers([], 4).shape == (0, 136)
