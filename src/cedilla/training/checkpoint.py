"""The state of a training run on disk, whole or absent, without pickles that can run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cedilla.files import whole_file


def save_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    **progress: Any,
) -> None:
    """Write the trained weights, the optimiser's and the loss scaler's state, and plain facts
    such as ``step=100``."""
    state = {
        "model": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "progress": progress,
        "rng": torch.get_rng_state(),
    }
    with whole_file(path / "state.pt") as draft:
        torch.save(state, draft)


def load_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Restore what `save_state` wrote, if anything; returns the step to go on from."""
    if not (path / "state.pt").exists():
        return 0
    state = _read(path)
    model.load_state_dict(state["model"], strict=False)
    optimiser.load_state_dict(state["optimiser"])
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    return int(state["progress"]["step"])


def load_weights(path: Path, model: nn.Module) -> None:
    """Restore the trained weights alone."""
    model.load_state_dict(_read(path)["model"], strict=False)


def _read(path: Path) -> dict[str, Any]:
    # A run begun on a GPU can be resumed without one.
    state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    return state
