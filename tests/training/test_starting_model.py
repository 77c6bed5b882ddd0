"""The starting model: the shape that is asked for, or another model's."""

from __future__ import annotations

import pytest
import torch

from cedilla.errors import InputError
from cedilla.models.hybrid import Hybrid
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.weights import save_directory
from cedilla.training.starting_model import starting_model

DEFAULTS = {
    "architecture": "nt",
    "init": None,
    "layers": 2,
    "hidden_size": 16,
    "heads": 2,
    "intermediate_size": 24,
    "k": 6,
    "channels": 8,
    "stride": 4,
    "dilations": (1, 2),
    "tokens": 20,
    "seed": 0,
}


def start(**changes):
    return starting_model(DEFAULTS | changes, DEFAULTS)


def test_the_shape_is_the_one_asked_for():
    model = start(k=3, layers=3, tokens=5000)
    config = model.config
    assert isinstance(model, NucleotideTransformer)
    assert (config.k, config.num_hidden_layers, config.max_tokens) == (3, 3, 5000)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 2, 24)
    hybrid = start(architecture="hybrid", stride=2, dilations=(1, 2, 4))
    assert isinstance(hybrid, Hybrid)
    assert (hybrid.config.stride, len(hybrid.convolutions), len(hybrid.blocks)) == (2, 3, 2)
    assert (hybrid.config.hidden_size, hybrid.config.block_size) == (8, 16)


@pytest.mark.parametrize("architecture", ["nt", "hybrid"])
def test_the_seed_draws_the_weights(architecture):
    first, again, other = (
        torch.cat([p.flatten() for p in start(architecture=architecture, seed=seed).parameters()])
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_impossible_shapes_are_refused():
    with pytest.raises(InputError, match="hidden_size 16 is not divisible by"):
        start(heads=3)
    with pytest.raises(InputError, match="k is no setting of hybrid; leave it out"):
        start(architecture="hybrid", k=3)
    with pytest.raises(InputError, match="stride is no setting of nt; leave it out"):
        start(stride=2)


def test_another_model_brings_weights_and_shape(tmp_path):
    first = start(k=3, seed=5)
    save_directory(first, tmp_path)
    init = {"init": str(tmp_path)}
    for settings in (init, init | {"k": 3}):  # its own shape may be named
        model = start(**settings)
        assert all(
            torch.equal(a, b) for a, b in zip(first.parameters(), model.parameters(), strict=True)
        )
    with pytest.raises(InputError) as caught:
        start(**init, layers=3, k=5)
    assert sorted(p.what for p in caught.value.problems) == [
        "k 5, but the model has 3",
        "layers 3, but the model has 2",
    ]
    with pytest.raises(InputError, match="architecture hybrid, but the model has nt"):
        start(**init, architecture="hybrid")
    with pytest.raises(InputError, match="tokens 4000, but the model takes 2048"):
        start(**init, tokens=4000)
