"""The zoo: the models that Cedilla knows by name, and where their weights come from."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from torch import nn

from cedilla.errors import InputError, MissingData
from cedilla.models.cnn import DilatedCNN
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.weights import load_directory

EMBEDDED = Path(__file__).parent / "embedded"
NT_LICENCE = "CC BY-NC-SA 4.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What the zoo knows about a model.

    parameters: in millions; context: the longest input in bases; repository: where the weights
    are published, if they are not part of Cedilla.
    """

    name: str
    summary: str
    parameters: float
    context: int
    licence: str
    repository: str = ""
    kind: Literal["language model", "baseline"] = "language model"


def _nt(name: str, summary: str, parameters: float, context: int) -> ModelCard:
    name = f"nucleotide-transformer-{name}"
    return ModelCard(
        name=name,
        summary=summary,
        parameters=parameters,
        context=context,
        licence=NT_LICENCE,
        repository=f"InstaDeepAI/{name}",
    )


CARDS = {
    card.name: card
    for card in [
        ModelCard(
            name="mini",
            summary="embedded: NT v2 over 3-mers, human and four other species",
            parameters=2.3,
            context=6141,
            licence="Apache-2.0",
        ),
        _nt("v2-50m-multi-species", "NT v2, 850 species", 55.9, 12_282),
        _nt("v2-100m-multi-species", "NT v2, 850 species", 97.9, 12_282),
        _nt("v2-250m-multi-species", "NT v2, 850 species", 235.1, 12_282),
        _nt("v2-500m-multi-species", "NT v2, 850 species", 498.3, 12_282),
        _nt("500m-human-ref", "NT v1, human reference", 485.7, 5_994),
        _nt("500m-1000g", "NT v1, 3,202 human genomes", 485.7, 5_994),
        _nt("2.5b-1000g", "NT v1, 3,202 human genomes", 2547.8, 5_994),
        _nt("2.5b-multi-species", "NT v1, 850 species", 2547.8, 5_994),
        ModelCard(
            name="cnn",
            summary="dilated residual CNN over bases, from scratch",
            parameters=0.3,
            context=100_000,
            licence="Apache-2.0",
            kind="baseline",
        ),
        ModelCard(
            name="kmer",
            summary="logistic regression on canonical 4- to 6-mer counts",
            parameters=0.0,
            context=1_000_000,
            licence="Apache-2.0",
            kind="baseline",
        ),
    ]
}
ALIASES = {
    name.removesuffix("-multi-species"): name for name in CARDS if name.endswith("-multi-species")
}
FROM_SCRATCH: dict[str, Callable[[], nn.Module]] = {"cnn": DilatedCNN}


def card(name: str) -> ModelCard:
    """The card of a model by name or alias; an unknown name gets the nearest known ones."""
    name = ALIASES.get(name, name)
    if name not in CARDS:
        near = difflib.get_close_matches(name, [*CARDS, *ALIASES], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `cedilla models`"
        raise InputError.one(f"model {name!r}", "is neither in the zoo nor a directory", hint)
    return CARDS[name]


def load(name_or_dir: str | Path) -> NucleotideTransformer:
    """Load a language model, in float32 and in evaluation mode.

    Parameters
    ----------
    name_or_dir:
        A directory with ``config.json`` and ``model.safetensors``, or a name of the zoo.

    Raises
    ------
    InputError
        For an unknown name (with the nearest known ones) or a damaged directory.
    MissingData
        When the weights are published elsewhere and cannot be had.
    """
    known = str(name_or_dir) in (*CARDS, *ALIASES)
    if (Path(name_or_dir) / "config.json").exists() or (Path(name_or_dir).is_dir() and not known):
        return load_directory(name_or_dir)
    found = card(str(name_or_dir))
    if found.kind == "baseline":
        raise InputError.one(
            f"model {found.name!r}",
            "is a baseline without pre-trained weights",
            "use it in finetune, or load a language model",
        )
    if not found.repository:
        return load_directory(EMBEDDED / found.name)
    return load_directory(_published_weights(found))


def build(name_or_dir: str | Path) -> nn.Module:
    """The encoder that a fine-tuning starts from: loaded, or built for training from scratch."""
    if str(name_or_dir) in FROM_SCRATCH:
        return FROM_SCRATCH[str(name_or_dir)]()
    return load(name_or_dir)


def _published_weights(found: ModelCard) -> Path:
    """The directory with a published model's files: local, or fetched by huggingface_hub."""
    root = os.environ.get("CEDILLA_MODELS")
    if root and (Path(root) / found.name / "config.json").exists():
        return Path(root) / found.name
    mend = (
        f"put {found.repository}'s config.json and model.safetensors in "
        f"$CEDILLA_MODELS/{found.name}, or install cedilla[hub] and connect"
    )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingData.one(f"model {found.name!r}", "weights are not on this machine", mend)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(found.repository, allow_patterns=["config.json", "model.safetensors"])
        )
    except Exception as error:
        # The hub's client raises dozens of types; each means that the files cannot be had.
        raise MissingData.one(
            f"model {found.name!r}", f"weights cannot be had: {type(error).__name__}", mend
        ) from error


def models() -> None:
    """List the models that Cedilla knows by name.

    Examples
    --------
    cedilla models
    """
    table = Table(title="Models")
    for column in ("name", "what it is", "M parameters", "context, bp", "licence"):
        table.add_column(column, justify="right" if column[0] in "Mc" else "left")
    for found in CARDS.values():
        size = f"{found.parameters:,.1f}" if found.parameters else "–"
        table.add_row(found.name, found.summary, size, f"{found.context:,}", found.licence)
    console = Console()
    console.print(table)
    console.print(
        "A directory with config.json and model.safetensors serves wherever a name does. "
        "The Nucleotide Transformer's weights are published by InstaDeep for non-commercial use "
        "and are fetched on demand."
    )
