"""Sequences longer than the context: cropped to the centre, or cut into tiles that cover them."""

from __future__ import annotations

import numpy as np
import pytest

from cedilla.inference.tiles import count_tokens
from cedilla.training.long_sequences import fit

RNG = np.random.default_rng(0)
LONG = "".join(RNG.choice(list("ACGT"), 100))
WITH_N = LONG[:30] + "N" * 9 + LONG[39:]


def test_what_fits_is_left_alone():
    found = fit(["ACGT", LONG], k=6, max_tokens=200, how="tile")
    assert found.sequences == ["ACGT", LONG]
    assert found.owners.tolist() == [0, 1]
    assert found.long == 0


def test_refused_ones_are_left_for_the_tokenizer():
    assert fit([LONG], k=6, max_tokens=5, how="refuse").sequences == [LONG]


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("sequence", [LONG, WITH_N])
def test_a_crop_is_the_centre(sequence, k):
    found = fit(["ACGT", sequence], k=k, max_tokens=9, how="crop")
    piece = found.sequences[1]
    assert found.owners.tolist() == [0, 1]
    assert found.long == 1
    assert count_tokens(piece, k) <= 8
    start = sequence.index(piece)
    # Beside N, where a base is a token, it may be off by what is cut in several goes.
    assert abs(start - (len(sequence) - len(piece) - start)) <= (2 if "N" in piece else 1)
    if "N" not in piece:
        assert len(piece) == 8 * k


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("sequence", [LONG, WITH_N])
def test_tiles_fit_and_cover_every_base(sequence, k):
    found = fit([sequence, "ACGT"], k=k, max_tokens=9, how="tile")
    tiles, owners = found.sequences, found.owners.tolist()
    assert owners == [0] * (len(tiles) - 1) + [1]
    assert max(count_tokens(tile, k) for tile in tiles) <= 8
    covered, at = np.zeros(len(sequence), dtype=bool), 0
    for tile in tiles[:-1]:
        start = sequence.index(tile, max(0, at - 8 * k))
        covered[start : start + len(tile)] = True
        at = start
    assert covered.all()
