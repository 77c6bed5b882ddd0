"""The model that pre-training starts from: random weights of a shape, or those of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cedilla.errors import InputError, stop_on_errors, unmet
from cedilla.models.families import LanguageModel
from cedilla.models.hybrid import Hybrid, HybridConfig
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.zoo import load

_BLOCKS = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
# Each setting of the shape, and what it is called in the configuration of an architecture.
SHAPES: dict[str, dict[str, str]] = {
    "nt": _BLOCKS | {"hidden_size": "hidden_size", "k": "k"},
    "hybrid": _BLOCKS
    | {"hidden_size": "block_size", "channels": "hidden_size"}
    | {"stride": "stride", "dilations": "dilations"},
}
WHERE = "cedilla pretrain"


def starting_model(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> LanguageModel:
    """The model that `settings` of the verb ask for, its random weights drawn by the seed.

    Raises :class:`InputError` for a shape that cannot be built, settings of the shape that the
    architecture or the model to go on from does not have, and windows longer than it takes.
    """
    torch.manual_seed(settings["seed"])
    asked = {
        name: settings[name]
        for shape in SHAPES.values()
        for name in shape
        if settings[name] != defaults[name]
    }
    model: LanguageModel = load(settings["init"]) if settings["init"] else _new(settings)
    kind = "hybrid" if isinstance(model, Hybrid) else "nt"
    if settings["init"] and settings["architecture"] != defaults["architecture"]:
        asked["architecture"] = settings["architecture"]
    _refuse_other_shape(model, kind, asked)
    tokens, most = settings["tokens"], model.config.max_tokens
    if tokens > most:
        raise InputError.one(WHERE, f"tokens {tokens}, but the model takes {most}", "lower it")
    return model


def _new(settings: Mapping[str, Any]) -> LanguageModel:
    names = SHAPES[settings["architecture"]]
    shape = {theirs: settings[ours] for ours, theirs in names.items() if theirs != "k"}
    try:
        model: LanguageModel = (
            Hybrid(HybridConfig(**shape))
            if settings["architecture"] == "hybrid"
            else NucleotideTransformer(_nt_config(shape, settings))
        )
    except ValueError as error:
        raise InputError.one(WHERE, str(error)) from None
    model.initialise()
    return model


def _nt_config(shape: Mapping[str, Any], settings: Mapping[str, Any]) -> NTConfig:
    vocabulary = 6 + 4 ** settings["k"] + 5
    positions = max(2050, settings["tokens"] + 2)
    return NTConfig(vocab_size=vocabulary, max_position_embeddings=positions, **shape)


def _refuse_other_shape(model: LanguageModel, kind: str, asked: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` with what was asked for that the model is not."""
    names = SHAPES[kind]
    has = {"architecture": kind} | {n: getattr(model.config, names[n]) for n in names}
    rules = [
        (
            name not in has or has[name] == value,
            f"{name} {value}, but the model has {has.get(name)}",
        )
        for name, value in asked.items()
    ]
    rules += [(name in has, f"{name} is no setting of {kind}") for name in asked]
    stop_on_errors(unmet(WHERE, [(*rule, "leave it out") for rule in rules]))
