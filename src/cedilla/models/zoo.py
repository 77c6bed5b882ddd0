"""The zoo: models by name or directory, loaded or built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from cedilla.errors import InputError
from cedilla.models.cards import ALIASES, CARDS, ModelCard, card
from cedilla.models.cnn import DilatedCNN
from cedilla.models.families import Config, LanguageModel, family_of
from cedilla.models.fetch import at_hand, directory_of
from cedilla.models.hybrid import HybridConfig
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.weights import load_directory, read_config, wanted_shapes

EMBEDDED = Path(__file__).parent / "embedded"
WIDE = 140  # columns of a terminal in which the whole list fits
FROM_SCRATCH: dict[str, Callable[[], nn.Module]] = {"cnn": DilatedCNN}


def load(
    name_or_dir: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
) -> LanguageModel:
    """Load a language model in evaluation mode.

    The published weights of a name are fetched if they are not on this machine. Memory holds the
    model once, in `dtype`, however its files are stored.

    Parameters
    ----------
    name_or_dir:
        A directory with ``config.json`` and weights, or a name of the zoo.
    dtype:
        Of all weights: torch.float32, torch.bfloat16 or torch.float16, or its name.
    device:
        Where they go.

    Raises
    ------
    InputError
        For an unknown name (with the nearest known ones), a damaged or altered directory, or
        another dtype.
    MissingData
        When the weights are published elsewhere and cannot be had.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        mend = "choose float32, bfloat16 or float16"
        raise InputError.one("cedilla.load", f"dtype={dtype!r} is no choice", mend)
    chosen: torch.dtype = getattr(torch, name)
    return load_directory(directory(name_or_dir), dtype=chosen, device=device)


def build(name_or_dir: str | Path) -> nn.Module:
    """The encoder that a fine-tuning starts from: loaded, or built for training from scratch."""
    if str(name_or_dir) in FROM_SCRATCH:
        return FROM_SCRATCH[str(name_or_dir)]()
    return load(name_or_dir)


def directory(name_or_dir: str | Path) -> Path:
    """The directory with a model's files; raises as :func:`load` does.

    Of the run directory of a pre-training, the one with its best weights.
    """
    if not _is_name(name_or_dir):
        path = Path(name_or_dir)
        best = path / "checkpoints" / "best"
        is_run = not (path / "config.json").exists() and (best / "config.json").exists()
        return best if is_run else path
    found = card(str(name_or_dir))
    if found.kind == "baseline":
        raise InputError.one(
            f"model {found.name!r}",
            "is a baseline without pre-trained weights",
            "use it in finetune, or load a language model",
        )
    return directory_of(found) if found.repository else EMBEDDED / found.name


def _is_name(name_or_dir: str | Path) -> bool:
    known = str(name_or_dir) in (*CARDS, *ALIASES)
    path = Path(name_or_dir)
    return not ((path / "config.json").exists() or (path.is_dir() and not known))


def models() -> None:
    """List the models that Cedilla knows by name.

    Examples
    --------
    cedilla models
    cedilla models list
    """
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table(title="Models", box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("M parameters", "context, bp"):
        table.add_column(column, justify="right")
    # On a narrow terminal, names are worth more than what `models show` also says.
    more = ("what it is", "licence") if console.width >= WIDE else ()
    for column in more:
        table.add_column(column)
    for found in CARDS.values():
        size = f"{found.parameters / 1e6:,.1f}" if found.parameters else "–"
        rest = (found.summary, found.licence)[: len(more)]
        table.add_row(found.name, size, f"{found.context:,}", *rest)
    console.print(table)
    console.print(
        "\nA directory with config.json and weights serves wherever a name does. The Nucleotide "
        "Transformer's weights are published by InstaDeep for non-commercial use and are fetched "
        "on demand. `cedilla models show NAME` says more."
    )


def models_show(name: str) -> None:
    """Print what is known about a model: shape, parameters, memory, context, licence, files.

    Parameters
    ----------
    name
        A name of `cedilla models`, or a directory with config.json and weights.

    Examples
    --------
    cedilla models show mini
    cedilla models show nucleotide-transformer-v2-50m
    """
    rows = _card_rows(card(name)) if _is_name(name) else _directory_rows(directory(name))
    width = max(map(len, rows))
    for label, text in rows.items():
        print(f"{label:<{width}}  {text}")


def _card_rows(found: ModelCard) -> dict[str, str]:
    rows = {"name": found.name, "what it is": found.summary}
    if found.kind == "baseline":
        rows["parameters"] = f"{found.parameters:,}, trained from scratch"
        return rows | {"licence": found.licence}
    config = found.config or read_config(EMBEDDED / found.name / "config.json")
    rows |= _shape_rows(config)
    used = _used(config)
    if found.repository:
        rows["parameters"] = f"{found.parameters:,} in the published files, {used:,} of them used"
    rows["licence"] = found.licence
    if not found.repository:
        return rows | {"files": str(EMBEDDED / found.name)}
    at = found.revision or "its newest commit, recorded at the first download"
    rows["source"] = f"https://huggingface.co/{found.repository} at {at}"
    places = at_hand(found)
    here = "; ".join(f"{path} ({place})" for place, path in places.items())
    rows["files"] = here or f"not here; `cedilla models get {found.name}` fetches them"
    return rows | ({"note": found.note} if found.note else {})


def _directory_rows(path: Path) -> dict[str, str]:
    return {"directory": str(path), **_shape_rows(read_config(path / "config.json"))}


def _shape_rows(config: Config) -> dict[str, str]:
    of_family = (
        _hybrid_rows(config) if isinstance(config, HybridConfig) else _transformer_rows(config)
    )
    tokens = config.max_tokens
    used = _used(config)
    return {
        "family": family_of(config).title,
        **of_family,
        "layers": f"0 to {config.last_layer} in --layers",
        "context": f"{(tokens - 1) * config.k:,} bp: {tokens:,} tokens with <cls>",
        "parameters": f"{used:,}",
        "memory": f"{_size(used * 4)} in float32, {_size(used * 2)} in bfloat16, for the weights",
    }


def _transformer_rows(config: NTConfig) -> dict[str, str]:
    dropout = "; <mask> embeddings are zeroed and the rest rescaled" if config.token_dropout else ""
    return {
        "shape": _blocks(config),
        "tokens": (
            f"{config.k}-mers, {config.vocab_size:,} ids of version {config.version}{dropout}"
        ),
        "positions": "rotary" if config.rotary else "a learned table",
    }


def _hybrid_rows(config: HybridConfig) -> dict[str, str]:
    dilations = ", ".join(map(str, config.dilations))
    return {
        "convolutions": (
            f"one over {config.stem_width} bases, then {len(config.dilations)} residual ones over "
            f"{config.kernel_size}, {config.hidden_size:,} wide, dilations {dilations}"
        ),
        "blocks": f"{_blocks(config.blocks)}, {config.stride} bases per position",
        "tokens": f"single bases, {config.vocab_size:,} ids of version {config.version}",
        "positions": "rotary",
        "methylation": "a channel" if config.methylation else "no channel",
    }


def _blocks(config: NTConfig) -> str:
    ffn = "bias-free SwiGLU" if config.gated else "GELU with biases"
    return (
        f"{config.num_hidden_layers} layer{'s' * (config.num_hidden_layers != 1)}, "
        f"{config.hidden_size:,} wide, "
        f"{config.num_attention_heads} heads of {config.head_size}, "
        f"FFN {config.intermediate_size:,} ({ffn})"
    )


def _used(config: Config) -> int:
    return sum(torch.Size(shape).numel() for shape in wanted_shapes(config).values())


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
