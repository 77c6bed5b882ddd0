"""Windows as token ids, masked and weighed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer
from cedilla.training.masking import mask_tokens, token_weights, tokens_of

TOKENIZER = Tokenizer(3)


def test_windows_become_the_tokenizers_ids():
    windows = np.stack([alphabet.encode(s) for s in ("ACGTTGACA", "TTTCCCGGG")])
    expected, _ = TOKENIZER.encode(["ACGTTGACA", "TTTCCCGGG"])
    assert torch.equal(tokens_of(windows, TOKENIZER), expected)


@pytest.mark.parametrize("k", [1, 3])
def test_fifteen_percent_are_corrupted_in_the_published_shares(k):
    rng, tokenizer = np.random.default_rng(0), Tokenizer(k)
    first, count = len(tokenizer.special), 4**k
    ids = torch.from_numpy(rng.integers(first, first + count, (500, 400)))
    ids[:, 0] = CLS
    corrupted, chosen, masked = mask_tokens(ids, tokenizer, rng)
    n = int(chosen.sum())

    def near(found, share, of):
        assert abs(found / of - share) < 4 * math.sqrt(share * (1 - share) / of)

    near(n, 0.15, 500 * 399)
    changed = corrupted != ids
    near(int(masked.sum()), 0.8, n)
    near(int((changed & ~masked).sum()), 0.1, n)
    near(int((chosen & ~changed).sum()), 0.1, n)
    # Nothing else is touched, <cls> least of all.
    assert not (changed & ~chosen).any()
    assert (corrupted[:, 0] == CLS).all()
    assert (corrupted[masked] == MASK).all()
    replaced = corrupted[changed & ~masked]
    # Each other k-mer is as likely; a k-mer is never replaced by itself, nor by anything else.
    assert set(replaced.tolist()) == set(range(first, first + count))
    shift = (replaced - ids[changed & ~masked]) % count
    assert shift.min() == 1
    assert shift.unique().numel() == count - 1


def test_a_token_weighs_less_by_its_share_of_soft_masked_bases():
    soft = np.array([[0, 0, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1]], dtype=bool)
    found = token_weights(soft, 3, 0.1)
    assert found.dtype == torch.float32
    expected = [[0, 1, 1 - 0.9 / 3], [0, 0.1, 1 - 0.9 * 2 / 3]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert (token_weights(soft, 3, 1.0)[:, 1:] == 1).all()
    assert token_weights(soft, 1, 0.0).tolist() == [[0, 1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0]]
