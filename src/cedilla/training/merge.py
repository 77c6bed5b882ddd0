"""Fold an adapter into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from cedilla.errors import InputError, stop_on_errors
from cedilla.models.families import empty
from cedilla.models.weights import read_config, save_directory
from cedilla.models.zoo import directory, load
from cedilla.progress import console
from cedilla.training.adapter_files import SavedAdapter, attach, mismatches, read_adapter
from cedilla.training.adapters import adapted_modules, counted

DISK = 200e6  # bytes a second, of a slow disk


def merge(*, adapter: Path, model: str, out: Path, dry_run: bool = False) -> Path:
    """Fold an adapter into its base model, and write an ordinary model directory.

    The result computes what base and adapter do together, at the cost of the base alone, and
    serves wherever a model does. Weights are stored in float32. A classification head is not part
    of a language model and stays behind.

    Parameters
    ----------
    adapter
        A directory in peft's format, trained here or elsewhere: LoRA, DoRA, rsLoRA or IA3; or the
        run of a fine-tuning, or its ``model/``.
    model
        The base that it was trained on: a name of `cedilla models`, or a directory.
    out
        The directory to write.
    dry_run
        Say what would be folded, with time and memory, and stop.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    InputError
        The adapter is damaged or belongs to another model, or `out` exists.
    MissingData
        The base is a name whose weights cannot be had.

    Examples
    --------
    cedilla merge --adapter runs/a --model mini --out models/mini_adapted
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError.one(out, "is there already", "choose another --out")
    config = read_config(directory(model) / "config.json")
    saved = read_adapter(_within(adapter), config)
    blank = empty(config)
    stop_on_errors(mismatches(saved, blank))
    if dry_run:
        print(_summary(saved, blank, model, out))
        return out
    network = load(model)
    # First, because IA3 rescales biases as well.
    network.load_state_dict(saved.whole, strict=False)
    attach(saved, network)
    fold(network)
    save_directory(network, out)
    if saved.head:
        console.print("note: the head is not part of a language model; it is left out")
    print(out)
    return out


def _within(path: Path) -> Path:
    """The adapter itself, of a fine-tuned model or the run that left it."""
    places = (path, path / "adapter", path / "model" / "adapter")
    found = (place for place in places if (place / "adapter_config.json").exists())
    return next(found, path)


def fold(encoder: nn.Module) -> None:
    """Fold the adapters that a model carries into its weights, in place."""
    for name in adapted_modules(encoder):
        layer: Any = encoder.get_submodule(name)
        layer.merge()
        encoder.set_submodule(name, layer.get_base_layer())


def _summary(saved: SavedAdapter, blank: nn.Module, model: str, out: Path) -> str:
    size = 4 * sum(weight.numel() for weight in blank.state_dict().values())
    rank = "" if saved.method == "ia3" else f" of rank {saved.config.get('r', 8)}"
    modules = [name for name, _ in blank.named_modules() if name in saved.parts]
    whole = f", and {len(saved.whole)} whole weights" if saved.whole else ""
    return (
        f"{saved.method}{rank} on {counted(modules)}{whole}, into {model} → {out}: "
        f"{size:,} bytes in float32, {2 * size / 1e9 + 0.3:.1f} GB of memory, "
        f"about {2 * size / DISK + 5:.0f} seconds"
    )
