"""A model on disk: a directory with ``config.json`` and the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import whole_file, write_json
from cedilla.models.families import Config, LanguageModel, config_from, empty, settings_of
from cedilla.models.lock import refuse_altered
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.shards import SAFETENSORS, Stored, headers, main_file, tensors, weight_files

# Published files carry these; no published model uses them.
_DEAD = re.compile(
    r"^esm\.(contact_head\.|embeddings\.position_ids$"
    r"|encoder\.layer\.\d+\.attention\.self\.rotary_embeddings\.inv_freq$)"
)
POSITION_TABLE = "esm.embeddings.position_embeddings.weight"


def load_directory(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """The model in a directory, in evaluation mode.

    The weights are taken one by one into `dtype` on `device`, so that memory holds the model once
    and a small part of its files. See :mod:`cedilla.models.shards` for the files that serve.

    Raises
    ------
    InputError
        When a file is absent or damaged, or not the one that was fetched, or when weights are
        missing, unknown or misshapen: all of them in one error.
    """
    path = Path(path)
    refuse_altered(path)
    config = read_config(path / "config.json")
    stored = read_headers(path, config)
    state = {
        name: torch.empty(tensor.shape, dtype=dtype, device=device).copy_(tensor)
        for name, tensor in tensors(stored)
    }
    model = empty(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_directory(
    model: LanguageModel, path: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``config.json`` and ``model.safetensors``, for NT under the published names."""
    path = Path(path)
    write_config(path, model.config)
    state = {name: t.detach().to(dtype).contiguous() for name, t in model.state_dict().items()}
    with whole_file(path / SAFETENSORS) as draft:
        save_file(state, draft, metadata={"format": "pt"})


def write_config(path: Path, config: Config) -> None:
    """Write a directory's ``config.json``."""
    write_json(path / "config.json", settings_of(config))


def read_config(path: Path) -> Config:
    """The configuration in a ``config.json``; raises :class:`InputError`."""
    settings = read_settings(path)
    try:
        return config_from(settings)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError.one(
            path, str(error), "is it the configuration of a model that Cedilla knows?"
        ) from None


def read_settings(path: Path) -> dict[str, object]:
    """All that a ``config.json`` holds, unchecked; raises :class:`InputError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError.one(path, "not found", "name a directory with a model in it") from None
    except ValueError as error:
        raise InputError.one(
            path, str(error), "is it the configuration of a model that Cedilla knows?"
        ) from None
    if not isinstance(values, dict):
        raise InputError.one(
            path, "holds no settings", "is it the configuration of a model that Cedilla knows?"
        )
    return values


def read_headers(path: Path, config: Config, *, dead: bool = False) -> dict[str, Stored]:
    """Where each weight that a model of this configuration uses is stored, in the model's order.

    With `dead`, those follow that published files carry and the model does not use.

    Raises :class:`InputError` with all that is missing, unknown or misshapen.
    """
    main = main_file(path)
    stored = headers(weight_files(main))
    wanted = wanted_shapes(config)
    unused = {name: where for name, where in stored.items() if is_dead(name, config)}
    used = {name: where for name, where in stored.items() if name not in unused}
    stop_on_errors(_problems(used, wanted, main))
    return {name: used[name] for name in wanted} | (unused if dead else {})


def wanted_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that a model of this configuration uses."""
    return {name: tuple(weight.shape) for name, weight in empty(config).state_dict().items()}


def is_dead(name: str, config: Config) -> bool:
    """Whether published files carry a weight of this name that the model does not use."""
    if not isinstance(config, NTConfig):
        return False
    return bool(_DEAD.match(name)) or (config.rotary and name == POSITION_TABLE)


def _problems(
    stored: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]], main: Path
) -> Iterable[Problem]:
    found = [
        *((main, n, "is missing") for n in wanted if n not in stored),
        *((w.file, n, "is no weight of this model") for n, w in stored.items() if n not in wanted),
        *(
            (w.file, n, f"has shape {w.shape}; the model's is {wanted[n]}")
            for n, w in stored.items()
            if n in wanted and w.shape != wanted[n]
        ),
        *(
            (w.file, n, "is not stored as floating-point numbers")
            for n, w in stored.items()
            if n in wanted and not w.dtype.is_floating_point
        ),
    ]
    # What holds for a weight of every layer is said once.
    grouped: dict[tuple[Path, str, str], list[str]] = {}
    for file, name, what in found:
        pattern = re.sub(r"(?<=\.layer\.)\d+", "{}", name)
        grouped.setdefault((file, pattern, what), []).append(name)
    for (file, pattern, what), names in grouped.items():
        yield Problem(
            where=f"{file} {pattern.replace('{}', _layers(names), 1)}",
            what=what,
            mend="is config.json that of these weights?",
        )


def _layers(names: list[str]) -> str:
    """The layer of one name, or ``{0, 1, 2}`` of several; runs are shortened to ``0-2``."""
    layers = sorted(int(m[1]) for name in names if (m := re.search(r"\.layer\.(\d+)", name)))
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
    return text if len(layers) == 1 else f"{{{text}}}"
