"""Rotary angles, and the three ways to rescale them, against their published formulas."""

from __future__ import annotations

import math

import pytest
import torch

from cedilla.models.rotary import RopeScaling, rotary_angles

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
    """Equations 17 to 19 of YaRN with its alpha 1 and beta 32."""
    turns = TRAINED * plain(pair) / (2 * math.pi)
    gamma = min(max((turns - 1) / (32 - 1), 0.0), 1.0)
    return (1 - gamma) * plain(pair) / FACTOR + gamma * plain(pair)


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
    # 200 tokens are 31.8 turns of the fastest pair: just not kept whole.
    assert first / FACTOR < frequencies("yarn")[0] < first


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
