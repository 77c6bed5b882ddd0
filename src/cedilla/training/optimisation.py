"""How the weights move: groups of parameters, the rate over time, the average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Decay = Literal["cosine", "linear", "constant"]
FLOOR = 0.01  # of the highest rate, at the end of a cosine or linear decay
_STAGE = re.compile(r"\.(?:layer|convolutions|norms)\.(\d+)\.")


def rate_at(progress: float, *, warmup: float, decay: Decay) -> float:
    """The share of the highest rate at `progress` in [0, 1): a linear rise, then the decay."""
    rise = min(1.0, (progress + 1e-3) / warmup) if warmup else 1.0
    left = 1 - max(0.0, progress - warmup) / (1 - warmup)
    fall = {
        "cosine": FLOOR + (1 - FLOOR) * (0.5 - 0.5 * math.cos(math.pi * left)),
        "linear": FLOOR + (1 - FLOOR) * left,
        "constant": 1.0,
    }[decay]
    return rise * fall


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trained parameters for AdamW: matrices decay, vectors do not; each group has a ``scale``.

    Each layer's rate is `layer_decay` times that of the layer above it; the head's is whole.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, (parameter, below) in _below_the_head(model).items():
        # IA3's vectors are stored as matrices, and should not be drawn to 0 but stay about 1.
        is_matrix = parameter.ndim > 1 and ".ia3_l." not in name
        scale = layer_decay**below
        decay = weight_decay if is_matrix else 0.0
        group = groups.setdefault(
            (scale, is_matrix), {"params": [], "names": [], "weight_decay": decay, "scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _below_the_head(model: nn.Module) -> dict[str, tuple[nn.Parameter, int]]:
    """Each trained parameter, and how many layers its own lies below the head.

    Layers count as they follow each other in the model; what stands before the first is its foot.
    """
    stages: dict[str, int] = {}
    depths: dict[str, tuple[nn.Parameter, int]] = {}
    for name, parameter in model.named_parameters():
        found = _STAGE.search(name)
        if found:
            # A layer's norm and its convolution may stand in lists of their own.
            kind = "layer" if ".layer." in found[0] else "convolution"
            stages.setdefault(f"{kind} {found[1]}", len(stages) + 1)
        is_encoder = name.startswith("encoder.")
        depth = stages[f"{kind} {found[1]}"] if found else len(stages) if is_encoder else -1
        if parameter.requires_grad:
            depths[name] = (parameter, depth)
    top = len(stages) + 1
    return {name: (p, top - depth if depth >= 0 else 0) for name, (p, depth) in depths.items()}


class Average:
    """An exponential moving average of the trained weights, shorter at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().clone() for n, p in self._trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.weights.values()), list(self._trained.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averaged weights, for as long as the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self.steps, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self.steps = int(state["steps"])
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            kept: Tensor = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)
