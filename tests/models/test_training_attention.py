"""Attention in training on a CPU, against the maps written out."""

from __future__ import annotations

import pytest
import torch

from cedilla.models import training_attention
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.rotary import RopeScaling, rotary_angles
from cedilla.models.training_attention import attend

B, L, HEADS, SIZE = 5, 11, 4, 8
SCALING = RopeScaling(type="yarn", factor=4.0, trained_tokens=64)


def written_out(q, k, v, rotary, keys):
    q, k, v = (x.view(B, L, HEADS, SIZE).transpose(1, 2) for x in (q, k, v))
    if rotary:
        cos, sin = (angles.to(q.dtype) for angles in rotary)
        q, k = (x * cos + torch.cat(x.chunk(2, -1)[::-1], -1) * SIGNS * sin for x in (q, k))
    scores = q @ k.mT / SIZE**0.5
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, L, HEADS * SIZE)


SIGNS = torch.tensor([-1.0] * (SIZE // 2) + [1.0] * (SIZE // 2))


def projections(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = torch.randn(4, B, L, HEADS * SIZE, generator=generator).to(dtype)
    return [x.clone().requires_grad_() for x in (q, k, v)], gradient


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("scaling", ["learned positions", None, SCALING])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
def test_values_and_gradients_are_those_of_maps_written_out(
    monkeypatch, dtype, tolerance, scaling, pads
):
    monkeypatch.setattr(training_attention, "ELEMENTS", 2 * HEADS * L * L)  # groups of 2, 2 and 1
    rotary = None if scaling == "learned positions" else rotary_angles(L, SIZE, scaling)
    keys = None
    if pads:
        keys = torch.ones(B, 1, 1, L, dtype=torch.bool)
        keys[1, ..., 6:] = keys[4, ..., 1:] = False
    inputs, gradient = projections(dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = written_out(*exact, rotary, keys)
    found = attend(*inputs, heads=HEADS, rotary=rotary, keys=keys)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < tolerance
    wanted = torch.autograd.grad(expected, exact, gradient.double())
    for mine, theirs in zip(torch.autograd.grad(found, inputs, gradient), wanted, strict=True):
        assert mine.dtype == dtype
        assert (mine - theirs).abs().max() < tolerance * max(1, theirs.abs().max())


def test_no_map_of_a_batch_is_kept_for_the_gradient():
    config = NTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        vocab_size=75,
    )
    model = NucleotideTransformer(config)
    model.initialise()
    ids = torch.full((2, 200), 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, id):
        model.train().encode(ids)
    assert max(kept) < 200 * 200
