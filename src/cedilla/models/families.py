"""The families of language models: their configuration, model and inference, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cedilla.models import hybrid
from cedilla.models.hybrid import Hybrid, HybridConfig
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.packed import PackedModel
from cedilla.models.padded import PaddedModel
from cedilla.models.predictor import Precision, Predictor

Config = NTConfig | HybridConfig
LanguageModel = NucleotideTransformer | Hybrid


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What belongs together."""

    title: str
    config: type[Any]
    model: type[Any]
    predictor: type[Any]


NUCLEOTIDE_TRANSFORMER = "esm"
# By `model_type` in config.json; published configurations of NT v2 have none.
FAMILIES = {
    NUCLEOTIDE_TRANSFORMER: Family(
        title="Nucleotide Transformer",
        config=NTConfig,
        model=NucleotideTransformer,
        predictor=PackedModel,
    ),
    hybrid.MODEL_TYPE: Family(
        title="hybrid", config=HybridConfig, model=Hybrid, predictor=PaddedModel
    ),
}


def family_of(config: Config) -> Family:
    """The family that a configuration belongs to."""
    return FAMILIES[_model_type(config)]


def config_from(settings: Mapping[str, Any]) -> Config:
    """The configuration in what a ``config.json`` holds.

    Raises ValueError for an unknown family or impossible settings, TypeError for missing ones.
    """
    model_type = settings.get("model_type", NUCLEOTIDE_TRANSFORMER)
    if model_type not in FAMILIES:
        known = " or ".join(f"{key} ({family.title})" for key, family in FAMILIES.items())
        raise ValueError(f"model_type is {model_type!r}, not {known}")
    config: Config = FAMILIES[model_type].config.from_dict(settings)
    return config


def settings_of(config: Config) -> dict[str, Any]:
    """What `config_from` reads."""
    return {"model_type": _model_type(config), **asdict(config)}


def empty(config: Config) -> LanguageModel:
    """A model of that shape on the meta device: weights without numbers."""
    with torch.device("meta"):
        model: LanguageModel = family_of(config).model(config)
    return model


def prepare(
    model: LanguageModel,
    *,
    precision: Precision = "float32",
    device: str | torch.device | None = None,
    path: str | None = None,
    release: bool = False,
) -> Predictor:
    """A model for inference, by the means of its family; see the classes of `FAMILIES`."""
    predictor: Predictor = family_of(model.config).predictor(
        model, precision=precision, device=device, path=path, release=release
    )
    return predictor


def _model_type(config: Config) -> str:
    return next(key for key, family in FAMILIES.items() if isinstance(config, family.config))
