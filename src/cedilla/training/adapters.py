"""Which parameters a fine-tuning changes: all, LoRA adapters, or the head alone.

Adapters go through peft, imported only here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier

Method = Literal["full", "lora", "head"]
LORA_TARGETS = ("query", "key", "value", "dense")
# For batches of 64. Those of small models were chosen on training rows of GUE.
LEARNING_RATE: dict[Method, float] = {"full": 2e-3, "lora": 4e-3, "head": 4e-3}
OF_LARGE: dict[Method, float] = {"full": 5e-5, "lora": 2e-4, "head": 2e-4}
FROM_SCRATCH = 1e-3  # a convolutional network
LARGE = 3e7
# The output layer of pre-training, which a classifier does not run.
_UNUSED = "encoder.lm_head."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) · B A on each target module."""

    targets: tuple[str, ...] = LORA_TARGETS
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Trainable:
    """What is trained: parameters counted once each, and the modules that adapters matched.

    The output layer of pre-training is neither trained nor counted.
    """

    trainable: int
    total: int
    modules: tuple[str, ...]

    def __str__(self) -> str:
        share = (
            f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.2%})"
        )
        if not self.modules:
            return share
        kinds: dict[str, int] = {}
        for name in self.modules:
            kind = re.sub(r".*layer\.\d+\.", "", name)
            kinds[kind] = kinds.get(kind, 0) + 1
        return f"{share}; adapters on " + ", ".join(f"{n} × {kind}" for kind, n in kinds.items())


def prepare(model: SequenceClassifier, method: Method, lora: LoRA) -> Trainable:
    """Freeze and adapt `model` in place. Fusion and head are always trained."""
    modules: tuple[str, ...] = ()
    if method != "full":
        model.encoder.requires_grad_(False)
    if method == "lora":
        modules = match_modules(model.encoder, lora.targets)
        _add_lora(model.encoder, modules, lora)
    for name, parameter in model.named_parameters():
        if name.startswith(_UNUSED):
            parameter.requires_grad_(False)
    counted = [p for name, p in model.named_parameters() if not name.startswith(_UNUSED)]
    return Trainable(
        sum(p.numel() for p in counted if p.requires_grad),
        sum(p.numel() for p in counted),
        modules,
    )


def default_learning_rate(method: Method, parameters: int, *, baseline: bool = False) -> float:
    """The rate for a method and a model of that many parameters, where none is given."""
    if baseline:
        return FROM_SCRATCH
    return (OF_LARGE if parameters > LARGE else LEARNING_RATE)[method]


def match_modules(encoder: nn.Module, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Full names of the linear layers, inside the blocks, whose last name is a target.

    Full names, because peft matches by suffix and would hit more than was meant. Raises
    :class:`InputError` when a target matches nothing.
    """
    linear = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in name
    ]
    idle = [t for t in targets if not any(name.split(".")[-1] == t for name in linear)]
    if idle:
        known = sorted({name.split(".")[-1] for name in linear})
        raise InputError.one(
            f"--targets {','.join(idle)}",
            "match no module of this model",
            f"it has {', '.join(known)}" if known else "train it with --method full",
        )
    return tuple(name for name in linear if name.split(".")[-1] in targets)


def _add_lora(encoder: nn.Module, modules: tuple[str, ...], lora: LoRA) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=list(modules),
        ),
        encoder,
    )
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("lora_" in name)
