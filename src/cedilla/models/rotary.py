"""Rotary positions, and their rescaling for inputs longer than those of pre-training.

Rotary positions turn the pairs of a query and a key by angles that grow with the position, each
pair at a frequency of its own (Su et al. 2021, RoFormer). Beyond the trained length angles appear
that the model has never seen. Three published ways to keep them within what it has seen:

- ``linear``: every frequency divided by the factor (Chen et al. 2023, arXiv:2306.15595, position
  interpolation);
- ``ntk``: a larger base, so that the slowest frequency is divided by the factor and the fastest is
  kept (bloc97 2023, "NTK-aware scaled RoPE", as in section 3.1 of the next);
- ``yarn``: frequencies that turn often within the trained length are kept, those that do not turn
  once are divided, those between are blended; and the attention logits are sharpened (Peng et al.
  2023, arXiv:2309.00071; constants and blend are those of its code, which transformers has too).

``benchmarks/long_context.py`` measures them on a small model, beside ``none``, plain positions.
``yarn`` is the default: at four and eight times the trained length it lost least, and at twice it
was as good as any. From four times on, pieces of the trained length were as good or better: read
those where nothing needs more at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Rescaling = Literal["none", "linear", "ntk", "yarn"]
Angles = tuple[Tensor, Tensor]
BASE = 10000.0
# YaRN: pairs that turn more often than this in the trained length are kept, less are divided.
KEPT_FROM, DIVIDED_TO = 32.0, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How the rotary positions of a model were rescaled.

    type: the method; factor: how much longer than `trained_tokens` inputs may be.

    Raises ValueError for an unknown method or an impossible number.
    """

    type: Rescaling
    factor: float
    trained_tokens: int

    def __post_init__(self) -> None:
        if self.type not in get_args(Rescaling):
            raise ValueError(f"rope_scaling type {self.type!r} is none of {get_args(Rescaling)}")
        if not 1 <= self.factor < math.inf or self.trained_tokens < 1:
            raise ValueError(
                f"rope_scaling factor {self.factor} and trained_tokens {self.trained_tokens} "
                "must be 1 at least"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RopeScaling:
        """Read the part of a ``config.json``; any other key than these three is refused."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(f"rope_scaling must have the keys {', '.join(sorted(names))}")
        return cls(**values)


def rotary_angles(
    L: int, head_size: int, scaling: RopeScaling | None, device: torch.device | None = None
) -> Angles:
    """cos and sin (L, head size) of positions 0 to L - 1, for the half-split layout.

    In float32 whatever the weights are: bfloat16 angles of far positions would be wrong by whole
    turns. YaRN's sharpening is in them: it scales queries and keys alike.
    """
    frequency = _frequencies(head_size, scaling, device)
    angle = torch.outer(torch.arange(L, device=device, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], dim=-1)
    sharpening = 1.0
    if scaling is not None and scaling.type == "yarn":
        sharpening = 0.1 * math.log(scaling.factor) + 1.0
    return angle.cos() * sharpening, angle.sin() * sharpening


def _frequencies(
    head_size: int, scaling: RopeScaling | None, device: torch.device | None
) -> Tensor:
    """Radians per token of each pair (head size / 2,), the fastest first."""
    exponent = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    frequency = 1.0 / BASE**exponent
    if scaling is None or scaling.type == "none":
        return frequency
    if scaling.type == "linear":
        return frequency / scaling.factor
    if scaling.type == "ntk":
        larger = BASE * scaling.factor ** (head_size / max(head_size - 2, 1))
        return 1.0 / larger**exponent
    kept_to = max(math.floor(_pair(KEPT_FROM, head_size, scaling.trained_tokens)), 0)
    divided_from = math.ceil(_pair(DIVIDED_TO, head_size, scaling.trained_tokens))
    width = max(min(divided_from, head_size - 1) - kept_to, 0.001)
    pairs = torch.arange(head_size // 2, device=device)
    divided = ((pairs - kept_to) / width).clamp(0.0, 1.0)
    return frequency * (1 - divided + divided / scaling.factor)


def _pair(turns: float, head_size: int, tokens: int) -> float:
    """Where, among the pairs, the one stands that turns so often within so many tokens."""
    return head_size / 2 * math.log(tokens / (2 * math.pi * turns)) / math.log(BASE)
