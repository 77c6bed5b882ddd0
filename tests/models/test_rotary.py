"""Rotary angles, and the three ways to rescale them, against their published formulas."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cedilla.models.rotary import RopeScaling, rotary_angles

REFERENCE = Path(__file__).parents[2] / ".reference"
HEAD, TRAINED, FACTOR = 16, 200, 4.0
PAIRS = HEAD // 2


def frequencies(method: str | None) -> list[float]:
    """Radians per token of each pair, read from the angles of position 1."""
    scaling = method and RopeScaling(type=method, factor=FACTOR, trained_tokens=TRAINED)
    cos, sin = rotary_angles(2, HEAD, scaling or None)
    return torch.atan2(sin, cos)[1, :PAIRS].tolist()


def plain(pair: int) -> float:
    return 10000 ** (-2 * pair / HEAD)


def yarn(pair: int) -> float:
    """All pairs turn less than 32 times in 200 tokens; pair 3 turns once, or just more."""
    divided = min(pair / 4, 1.0)
    return plain(pair) * (1 - divided + divided / FACTOR)


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        (None, plain),
        ("none", plain),
        ("linear", lambda pair: plain(pair) / FACTOR),
        ("ntk", lambda p: (10000 * FACTOR ** (HEAD / (HEAD - 2))) ** (-2 * p / HEAD)),
        ("yarn", yarn),
    ],
)
def test_frequencies_are_the_published_ones(method, formula):
    assert frequencies(method) == pytest.approx([formula(p) for p in range(PAIRS)], rel=1e-5)


def test_each_method_keeps_or_divides_the_ends():
    first, last = plain(0), plain(PAIRS - 1)
    assert frequencies("ntk")[0] == pytest.approx(first)
    assert frequencies("ntk")[-1] == pytest.approx(last / FACTOR, rel=1e-5)
    assert frequencies("yarn")[-1] == pytest.approx(last / FACTOR, rel=1e-5)
    assert frequencies("yarn")[0] == pytest.approx(first)


def test_interpolation_puts_long_inputs_where_short_ones_were():
    scaling = RopeScaling(type="linear", factor=FACTOR, trained_tokens=TRAINED)
    long, short = rotary_angles(41, HEAD, scaling), rotary_angles(11, HEAD, None)
    for a, b in zip(long, short, strict=True):
        torch.testing.assert_close(a[::4], b)


def test_yarn_alone_sharpens_the_logits():
    for method, expected in (("linear", 1.0), ("ntk", 1.0), ("yarn", 0.1 * math.log(4) + 1)):
        scaling = RopeScaling(type=method, factor=FACTOR, trained_tokens=TRAINED)
        cos, sin = rotary_angles(50, HEAD, scaling)
        size = (cos.square() + sin.square()).sqrt()
        torch.testing.assert_close(size, torch.full((50, HEAD), expected))


@pytest.mark.skipif(
    not (REFERENCE / "transformers").exists(), reason="no .reference; run make reference"
)
@pytest.mark.slow
@pytest.mark.parametrize(("head", "trained", "factor"), [(32, 128, 8.0), (16, 2048, 2.0)])
def test_yarn_and_interpolation_are_those_of_transformers(head, trained, factor):
    program = f"""
import json
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers import PretrainedConfig
found = {{}}
for kind in ("linear", "yarn"):
    config = PretrainedConfig(
        hidden_size={head}, num_attention_heads=1, rope_theta=10000.0,
        max_position_embeddings={trained},
        rope_scaling={{"rope_type": kind, "factor": {factor}}},
    )
    frequencies, sharpening = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    found[kind] = [frequencies.tolist(), sharpening]
print(json.dumps(found))
"""
    environment = os.environ | {"PYTHONPATH": str(REFERENCE)}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for kind, (frequencies, sharpening) in json.loads(out.stdout).items():
        scaling = RopeScaling(type=kind, factor=factor, trained_tokens=trained)
        cos, sin = rotary_angles(2, head, scaling)
        ours = torch.atan2(sin, cos)[1, : head // 2]
        torch.testing.assert_close(ours, torch.tensor(frequencies), rtol=1e-5, atol=1e-8)
        assert cos[0, 0].item() == pytest.approx(sharpening)


def test_a_length_that_no_pair_turns_in_divides_all_but_the_fastest():
    cos, sin = rotary_angles(2, HEAD, RopeScaling(type="yarn", factor=2.0, trained_tokens=4))
    ours = torch.atan2(sin, cos)[1, :PAIRS].tolist()
    assert ours == pytest.approx([plain(0), *(plain(pair) / 2 for pair in range(1, PAIRS))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "dynamic"}, "'dynamic' is none of"),
        ({"factor": 0.5}, "factor 0.5"),
        ({"factor": math.inf}, "factor inf"),
        ({"factor": math.nan}, "factor nan"),
        ({"trained_tokens": 0}, "trained_tokens 0"),
        ({"base": 3}, "must have the keys factor, trained_tokens, type"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    values = {"type": "yarn", "factor": 2.0, "trained_tokens": 100}
    with pytest.raises(ValueError, match=message):
        RopeScaling.from_dict(values | change)
    assert RopeScaling.from_dict(values) == RopeScaling(**values)
