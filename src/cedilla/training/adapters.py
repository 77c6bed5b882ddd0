"""Which parameters a fine-tuning changes: all, the head, the top layers, biases, or adapters.

Adapters go through peft, imported only here and in :mod:`cedilla.training.adapter_files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.models.classifier import SequenceClassifier

Method = Literal["full", "head", "top", "bias", "lora", "dora", "rslora", "ia3"]
LORA_TARGETS = ("query", "key", "value", "dense")
# What carries adapters unless named otherwise. The blocks of every language model of the zoo have
# their modules under the same names.
PRESETS: dict[Method, tuple[str, ...]] = {
    "lora": LORA_TARGETS,
    "dora": LORA_TARGETS,
    "rslora": LORA_TARGETS,
    "ia3": ("key", "value", "output.dense"),
}
# IA3 rescales the input of this layer, the FFN's inner activation, and the output of any other.
_INNER = "output.dense"
# For batches of 64. Those of small models for full, lora and head were chosen on training rows of
# GUE; 3e-3 for IA3 is the Nucleotide Transformer's, there with batches of 8.
LEARNING_RATE: dict[Method, float] = {
    "full": 2e-3, "head": 4e-3, "top": 2e-3, "bias": 4e-3,
    "lora": 4e-3, "dora": 4e-3, "rslora": 4e-3, "ia3": 1e-2,
}  # fmt: skip
OF_LARGE: dict[Method, float] = {
    "full": 5e-5, "head": 2e-4, "top": 5e-5, "bias": 4e-4,
    "lora": 2e-4, "dora": 2e-4, "rslora": 2e-4, "ia3": 3e-3,
}  # fmt: skip
FROM_SCRATCH = 1e-3  # a convolutional network
LARGE = 3e7
OUTPUT_LAYER = "lm_head."  # of pre-training, which a classifier does not run
# What stands between the last block and a head.
BEHIND_BLOCKS = ("emb_layer_norm_after", "lengthen", "last_norm")
_IN_BLOCK = re.compile(r"^(?:.*\.)?layer\.(\d+)\.")
_ADAPTER_WEIGHT = re.compile(r"\.(lora|ia3)_")
WITHOUT_BLOCKS = "train it with --method full"


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """What the methods that train a part of the model can be told.

    targets: the linear layers that carry adapters, by their last name (``dense``) or all of it
    inside a block (``attention.output.dense``); None takes the method's preset.
    rank, alpha: the update is alpha / rank · B A, for rslora alpha / √rank · B A.
    dropout: before A; IA3 has none.
    top_layers: how many Transformer blocks `top` trains.

    Sources: LoRA, Hu et al. 2021 (arXiv:2106.09685); DoRA, Liu et al. 2024 (arXiv:2402.09353);
    rsLoRA, Kalajdzievski 2023 (arXiv:2312.03732); IA3, Liu et al. 2022 (arXiv:2205.05638); bias,
    Ben Zaken et al. 2022 (arXiv:2106.10199).
    """

    targets: tuple[str, ...] | None = None
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.1
    top_layers: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainable:
    """What is trained: parameters counted once each, and the modules that the method matched.

    The output layer of pre-training is neither trained nor counted.
    """

    method: Method
    trainable: int
    total: int
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = (
            f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.2%})"
        )
        if not self.modules:
            return share
        part = {"top": "the head and", "bias": "the head and biases of"}
        return f"{share}; {part.get(self.method, 'adapters on')} {counted(self.modules)}"


def counted(modules: Sequence[str]) -> str:
    """Modules by kind, such as ``2 × attention.self.query, 2 × output.dense``."""
    kinds: dict[str, int] = {}
    for name in modules:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + 1
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.items())


def kind_of(name: str) -> str:
    """A module's name without the number and place of its block: ``attention.self.query``."""
    if re.search(r"(^|\.)layer\.\d+$", name):
        return "block"
    if _IN_BLOCK.match(name):
        return _IN_BLOCK.sub("", name)
    return re.sub(r"^(esm\.)?encoder\.|\.\d+", "", name)


def prepare(model: SequenceClassifier, method: Method, adapter: Adapter) -> Trainable:
    """Freeze and adapt `model` in place. Fusion and head are always trained.

    Raises :class:`InputError` for a target that matches nothing or what another one has matched,
    a method that this model has no modules for, more top layers than there are, and a model that
    carries adapters already; the model is then as it was.
    """
    encoder = model.encoder
    refuse_adapted(encoder)
    modules = _modules(encoder, method, adapter)
    if method in PRESETS:
        inject(encoder, _settings(method, modules, adapter), modules)
    return freeze(model, method, modules)


def default_learning_rate(method: Method, parameters: int, *, baseline: bool = False) -> float:
    """The rate for a method and a model of that many parameters, where none is given."""
    if baseline:
        return FROM_SCRATCH
    return (OF_LARGE if parameters > LARGE else LEARNING_RATE)[method]


def match_modules(encoder: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """Full names of the linear layers, inside the blocks, that a target names.

    A target is a layer's last name, or all of its name inside the block: ``output.dense`` is the
    FFN's alone. Full names are returned, because peft matches by suffix and would hit more than
    was meant. Raises :class:`InputError` when a target matches nothing, or a layer twice.
    """
    linear = {name: kind_of(name) for name in linear_in_blocks(encoder)}
    hits = {
        name: [t for t in targets if t in (kind, kind.rpartition(".")[2])]
        for name, kind in linear.items()
    }
    stop_on_errors(_target_problems(targets, linear, hits))
    return tuple(name for name, found in hits.items() if found)


def linear_in_blocks(encoder: nn.Module) -> list[str]:
    """Full names of the linear layers inside the Transformer blocks."""
    return [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and _IN_BLOCK.match(name)
    ]


def adapted_modules(encoder: nn.Module) -> tuple[str, ...]:
    """Full names of the modules that carry adapters."""
    return tuple(
        name.removesuffix(".base_layer")
        for name, _ in encoder.named_modules()
        if name.endswith(".base_layer")
    )


def refuse_adapted(encoder: nn.Module) -> None:
    """Raise :class:`InputError` if a model carries adapters: they would be matched twice."""
    if adapted := adapted_modules(encoder):
        what = f"carries adapters already, on {counted(adapted)}"
        raise InputError.one("the model", what, "start from the base, or `cedilla merge` them")


def inject(encoder: nn.Module, settings: Mapping[str, Any], modules: Sequence[str]) -> None:
    """Put adapters on `modules`, in place; `settings` are those of peft's LoRA or IA3."""
    from peft import IA3Config, LoraConfig, inject_adapter_in_model

    kinds: dict[str, type[Any]] = {"LORA": LoraConfig, "IA3": IA3Config}
    others = {key: value for key, value in settings.items() if key != "peft_type"}
    config = kinds[settings["peft_type"]](target_modules=list(modules), **others)
    inject_adapter_in_model(config, encoder)


def freeze(model: SequenceClassifier, method: Method, modules: tuple[str, ...]) -> Trainable:
    """Let what the method trains, and nothing else, have gradients; `modules` are its own."""
    named = dict(model.named_parameters(remove_duplicate=False))
    used = {n: p for n, p in named.items() if not n.startswith(f"encoder.{OUTPUT_LAYER}")}
    # A parameter that several modules share is trained if one of them is, and counts once.
    trained = {id(p) for name, p in used.items() if _is_trained(name, method, modules)}
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in trained)
    sizes = {id(p): p.numel() for p in used.values()}
    return Trainable(
        method=method,
        trainable=sum(sizes[key] for key in trained),
        total=sum(sizes.values()),
        modules=modules,
    )


def _is_trained(name: str, method: Method, modules: tuple[str, ...]) -> bool:
    if method == "full" or not name.startswith("encoder."):
        return True
    name = name.removeprefix("encoder.")
    if method in PRESETS:
        return bool(_ADAPTER_WEIGHT.search(name))
    if method == "bias":
        return name.rpartition(".")[2] == "bias"
    return name.startswith(tuple(f"{module}." for module in modules))


def _modules(encoder: nn.Module, method: Method, adapter: Adapter) -> tuple[str, ...]:
    """Full names of the modules that a method trains, or puts its adapters on."""
    if method == "top":
        return tuple(_top(encoder, adapter.top_layers))
    if method == "bias":
        return tuple(_with_bias(encoder))
    if method not in PRESETS:
        return ()
    if not linear_in_blocks(encoder):
        what = "puts adapters into Transformer blocks; this model has none"
        raise InputError.one(f"--method {method}", what, WITHOUT_BLOCKS)
    return match_modules(encoder, PRESETS[method] if adapter.targets is None else adapter.targets)


def _top(encoder: nn.Module, layers: int) -> Iterator[str]:
    """The last blocks, and what stands between them and the head."""
    blocks = {
        match[0].rstrip("."): None
        for name, _ in encoder.named_modules()
        if (match := _IN_BLOCK.match(name))
    }
    if not blocks:
        what = "trains Transformer blocks; this model has none"
        raise InputError.one("--method top", what, WITHOUT_BLOCKS)
    if not 1 <= layers <= len(blocks):
        what = f"this model has {len(blocks)} Transformer blocks"
        mend = f"choose from 1 to {len(blocks)}, or --method head for none"
        raise InputError.one(f"--top-layers {layers}", what, mend)
    yield from list(blocks)[-layers:]
    for name, _ in encoder.named_modules():
        if name.rpartition(".")[2] in BEHIND_BLOCKS:
            yield name


def _with_bias(encoder: nn.Module) -> Iterator[str]:
    found = [
        name.removesuffix(".bias")
        for name, _ in encoder.named_parameters()
        if name.endswith(".bias") and not name.startswith(OUTPUT_LAYER)
    ]
    if not found:
        what = "trains biases; this model has none"
        raise InputError.one("--method bias", what, WITHOUT_BLOCKS)
    yield from found


def _settings(method: Method, modules: Sequence[str], adapter: Adapter) -> dict[str, Any]:
    if method == "ia3":
        inner = [name for name in modules if kind_of(name) == _INNER]
        return {"peft_type": "IA3", "feedforward_modules": inner}
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_dora": method == "dora",
        "use_rslora": method == "rslora",
    }


def _target_problems(
    targets: Sequence[str], linear: Mapping[str, str], hits: Mapping[str, list[str]]
) -> Iterator[Problem]:
    """What is wrong with `targets`, given each layer's kind and the targets that hit it."""
    matched = {target for found in hits.values() for target in found}
    idle = [target for target in targets if target not in matched]
    if idle or not targets:
        names = {kind.rpartition(".")[2] for kind in linear.values()} | set(linear.values())
        yield Problem(
            where=f"--targets {','.join(idle)}",
            what="match no module of this model" if idle else "is empty",
            mend=f"it has {', '.join(sorted(names))}" if names else WITHOUT_BLOCKS,
        )
    twice = {tuple(found): linear[name] for name, found in hits.items() if len(found) > 1}
    for found, kind in twice.items():
        what = f"match {kind} {len(found)} times"
        yield Problem(where=f"--targets {','.join(found)}", what=what, mend="name it once")
