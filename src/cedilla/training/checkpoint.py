"""The state of a training run on disk, whole or absent, without pickles that can run code.

Weights to use are safetensors; what a run needs to go on is read with ``weights_only=True``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
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
        "model": _trained(model),
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


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the trained weights alone, as ``model.safetensors``."""
    with whole_file(path / "model.safetensors") as draft:
        save_file(_trained(model), draft)


def load_weights(path: Path, model: nn.Module) -> None:
    """Restore what `save_weights` wrote."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def _read(path: Path) -> dict[str, Any]:
    # A run begun on a GPU can be resumed without one.
    state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    return state
