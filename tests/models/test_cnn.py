"""The dilated CNN: its size, its reach, and that pads change nothing."""

from __future__ import annotations

import pytest
import torch

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models import cnn as cnn_module
from cedilla.models.cnn import CNNConfig, DilatedCNN

SMALL = CNNConfig(hidden_size=16, num_hidden_layers=3)


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    return DilatedCNN(SMALL).eval()


def encoded(model, sequences):
    return Tokenizer.for_model(model).encode(sequences)


@torch.no_grad()
def test_the_company_of_a_sequence_changes_nothing(cnn):
    sequences = ["ACGTACGTAC" * 7, "TTGACA", "NNACG", "A"]
    ids, mask = encoded(cnn, sequences)
    together = cnn.encode(ids, mask)
    assert together.shape == (4, 71, 16)
    for row, sequence in enumerate(sequences):
        alone = cnn.encode(*encoded(cnn, [sequence]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=5e-6)
    # Without a mask, pads are recognised by their id; whatever id a pad has, it is not read.
    assert torch.equal(cnn.encode(ids), together)
    other = cnn.encode(ids.masked_fill(~mask, 9), mask)
    assert torch.equal(other[mask], together[mask])


@torch.no_grad()
def test_a_base_is_seen_as_far_as_the_dilations_reach(cnn):
    # Half the stem, and 2^i for the i-th layer.
    reach = SMALL.stem_width // 2 + sum(2**i for i in range(SMALL.num_hidden_layers))
    ids, mask = encoded(cnn, ["A" * 99])
    changed = ids.clone()
    changed[0, 50] = encoded(cnn, ["C"])[0][0, 1]
    moved = (cnn.encode(ids, mask) - cnn.encode(changed, mask)).abs().sum(-1)[0] > 0
    assert moved.nonzero()[[0, -1], 0].tolist() == [50 - reach, 50 + reach]


def test_every_weight_learns(cnn):
    cnn.train().encode(*encoded(cnn, ["ACGTN" * 9])).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cnn.parameters())


def test_its_description_tells_its_size():
    size = sum(p.numel() for p in DilatedCNN().parameters())
    assert f"About {size / 1e6:.1f} M parameters" in cnn_module.__doc__
