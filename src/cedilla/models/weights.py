"""Weights on disk: a directory with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cedilla.errors import InputError, Problem
from cedilla.files import whole_file, write_json
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer

# Published files carry these; no published model uses them.
_DEAD = re.compile(
    r"^esm\.(contact_head\.|embeddings\.position_ids$"
    r"|encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq$)"
)
_DEAD_IF_ROTARY = "esm.embeddings.position_embeddings.weight"


def load_directory(path: str | Path) -> NucleotideTransformer:
    """The model in a directory, in float32 and in evaluation mode.

    Raises
    ------
    InputError
        When a file is absent or damaged, or when weights are missing, unknown or misshapen: all
        of them in one error.
    """
    path = Path(path)
    config = read_config(path / "config.json")
    state = _read_weights(path / "model.safetensors")
    # Built without memory, so that a large model is held once, not twice.
    with torch.device("meta"):
        model = NucleotideTransformer(config)
    state = _live_weights(state, model, path / "model.safetensors")
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_directory(
    model: NucleotideTransformer, path: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the published names."""
    path = Path(path)
    write_json(path / "config.json", {"model_type": "esm", **asdict(model.config)})
    state = {name: t.detach().to(dtype).contiguous() for name, t in model.state_dict().items()}
    with whole_file(path / "model.safetensors") as draft:
        save_file(state, draft, metadata={"format": "pt"})


def read_config(path: Path) -> NTConfig:
    """The configuration in a ``config.json``; raises :class:`InputError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("holds no settings")
        return NTConfig.from_dict(values)
    except FileNotFoundError:
        raise InputError.one(path, "not found", "name a directory with a model in it") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError.one(path, str(error), "is it a Nucleotide Transformer?") from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError.one(path, "not found", "the weights must be in safetensors") from None
    except SafetensorError as error:
        raise InputError.one(path, f"damaged: {error}", "fetch or copy it again") from None


def _live_weights(
    state: Mapping[str, torch.Tensor], model: NucleotideTransformer, path: Path
) -> dict[str, torch.Tensor]:
    """The weights that the model uses, in float32, after checking names and shapes."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    state = {
        name: tensor
        for name, tensor in state.items()
        if not _DEAD.match(name) and not (model.config.rotary and name == _DEAD_IF_ROTARY)
    }
    problems = [
        Problem(where=f"{path} {name}", what=what, mend="is config.json that of these weights?")
        for name, what in [
            *((n, "is missing") for n in wanted if n not in state),
            *((n, "is no weight of this model") for n in state if n not in wanted),
            *(
                (n, f"has shape {tuple(t.shape)}; the model's is {wanted[n]}")
                for n, t in state.items()
                if n in wanted and tuple(t.shape) != wanted[n]
            ),
        ]
    ]
    if problems:
        raise InputError(problems)
    return {name: tensor.float() for name, tensor in state.items()}
