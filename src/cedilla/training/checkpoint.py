"""The state of a training run on disk, whole or absent, without pickles that can run code.

Weights to use are safetensors; what a run needs to go on is read with ``weights_only=True``, and
only after the SHA-256 that ends the file has been found right. (The CRC-32s that torch's files
have of their own leave their directory unguarded: one flipped bit in two thousand passes.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cedilla.errors import InputError, Problem
from cedilla.files import whole_file
from cedilla.progress import console

SEAL = hashlib.sha256().digest_size
CHUNK = 1 << 20


def save_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    **progress: Any,
) -> None:
    """Write the trained weights, the optimiser's and the loss scaler's state, and plain facts or
    tensors such as ``step=100``, as ``state.pt``."""
    state = {
        "model": _trained(model),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "progress": progress,
        "rng": torch.get_rng_state(),
    }
    _write(path / "state.pt", state)


def load_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Any]:
    """Restore what `save_state` wrote, if anything; returns its facts.

    Raises :class:`InputError` for a damaged file.
    """
    file = path / "state.pt"
    if not file.exists():
        return {}
    if not _is_whole(file):
        raise InputError.one(file, "is cut off or damaged", "remove it to begin anew")
    state = _read(file)
    model.load_state_dict(state["model"], strict=False)
    optimiser.load_state_dict(state["optimiser"])
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    progress: dict[str, Any] = state["progress"]
    return progress


def save_step(folder: Path, step: int, state: Mapping[str, Any], *, keep: int) -> None:
    """Write a state as ``step-00001000.pt``, then remove all but the last `keep` steps."""
    _write(folder / f"step-{step:08d}.pt", dict(state))
    for old in _steps(folder)[:-keep]:
        old.unlink()


def newest_step(folder: Path) -> dict[str, Any] | None:
    """The state of the last step in `folder` that is not damaged; None where there is none.

    A damaged one is skipped with a word on standard error. Raises :class:`InputError` where all
    of them are damaged.
    """
    damaged = []
    for file in reversed(_steps(folder)):
        if _is_whole(file):
            return _read(file)
        damaged.append(file)
        text = f"note: {file} is cut off or damaged: going back to the checkpoint before it"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if damaged:
        mend = "restore one of them, or remove them to begin anew"
        raise InputError(
            Problem(where=str(file), what="is cut off or damaged", mend=mend) for file in damaged
        )
    return None


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the trained weights alone, as ``model.safetensors``."""
    with whole_file(path / "model.safetensors") as draft:
        save_file(_trained(model), draft)


def load_weights(path: Path, model: nn.Module) -> None:
    """Restore what `save_weights` wrote."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def _steps(folder: Path) -> list[Path]:
    """The checkpoints of steps, first to last."""
    found = [file for file in folder.glob("step-*.pt") if file.stem[5:].isdecimal()]
    return sorted(found, key=lambda file: int(file.stem[5:]))


def _write(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as draft:
        torch.save(state, draft)
        seal = _digest(draft, draft.stat().st_size)
        with open(draft, "ab") as file:
            file.write(seal)


def _read(path: Path) -> dict[str, Any]:
    # A run begun on a GPU can be resumed without one.
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _is_whole(path: Path) -> bool:
    """Whether a file ends in the digest of all that stands before it."""
    size = path.stat().st_size - SEAL
    if size < 0:
        return False
    with open(path, "rb") as file:
        file.seek(size)
        return file.read() == _digest(path, size)


def _digest(path: Path, size: int) -> bytes:
    """The SHA-256 of the first `size` bytes of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while size and (chunk := file.read(min(CHUNK, size))):
            found.update(chunk)
            size -= len(chunk)
    return found.digest()
