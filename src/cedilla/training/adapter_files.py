"""Adapters on disk, in peft's own format: trained here or on Hugging Face's model, for either.

Our modules have the names of Hugging Face's ESM, so a weight's name is the same here and there.
The head of Hugging Face's classifier is ours where it reads the first token; any other head, and
a fusion, has no counterpart there and lies beside the adapter in a file of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cedilla.dna.tables import listed
from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import whole_file, write_json
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.families import Config
from cedilla.models.heads import ClassificationHead
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.shards import headers, tensors
from cedilla.models.weights import is_dead
from cedilla.progress import console
from cedilla.training.adapters import (
    Method,
    Trainable,
    adapted_modules,
    freeze,
    inject,
    linear_in_blocks,
    refuse_adapted,
)

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
HEAD = "head.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l)(\.weight)?"
)
# What the settings of peft's LoRA and IA3 may hold: what is handed on to peft, with its type, and
# what says nothing about the numbers. Any other that is set asks for something else to be computed.
_HANDED_ON: dict[str, tuple[type, ...]] = {
    "r": (int,), "lora_alpha": (int, float), "lora_dropout": (int, float), "use_dora": (bool,),
    "use_rslora": (bool,), "rank_pattern": (dict,), "alpha_pattern": (dict,),
}  # fmt: skip
_SILENT = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "target_modules", "feedforward_modules", "exclude_modules", "bias",
    "modules_to_save", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "init_ia3_weights", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# These change the base as well as training the adapter.
_CHANGES_BASE = re.compile("pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedAdapter:
    """What an adapter's directory holds, by a model's names, and not yet compared with the model.

    weights: the file with the adapters.
    config: all that ``adapter_config.json`` says.
    parts: weights of the adapters by module and part (``lora_A.weight``, ``ia3_l``, …).
    head: weights of head and fusion, by our names; pooling: what the head reads.
    whole: other weights that were trained and saved whole, such as biases.
    layers: of the model that it was trained on, where the file says so.
    """

    path: Path
    weights: Path
    config: Mapping[str, Any]
    parts: dict[str, dict[str, Tensor]]
    head: dict[str, Tensor] = field(default_factory=dict)
    pooling: str = "cls"
    whole: dict[str, Tensor] = field(default_factory=dict)
    layers: int | None = None

    @property
    def method(self) -> Method:
        """What it was trained with."""
        if self.config["peft_type"] == "IA3":
            return "ia3"
        if self.config.get("use_dora"):
            return "dora"
        return "rslora" if self.config.get("use_rslora") else "lora"

    def settings(self) -> dict[str, Any]:
        """What :func:`cedilla.training.adapters.inject` takes."""
        if self.method == "ia3":
            # A vector over inputs lies as a row, one over outputs as a column.
            inner = [name for name, parts in self.parts.items() if len(parts["ia3_l"]) == 1]
            return {"peft_type": "IA3", "feedforward_modules": inner}
        chosen = {k: v for k in _HANDED_ON if (v := self.config.get(k)) is not None}
        return {"peft_type": "LORA", **chosen}


def save_adapter(path: Path, model: SequenceClassifier, *, base: str) -> None:
    """Write a model's adapters and head as peft does, with ``adapter_config.json`` last.

    `base` names the model that they belong on. ``peft.PeftModel.from_pretrained`` loads them onto
    Hugging Face's model. Raises ValueError for a model without adapters.
    """
    from peft import get_peft_model_state_dict

    encoder: Any = model.encoder
    modules = adapted_modules(encoder)
    if not modules:
        raise ValueError("the model carries no adapters; there is nothing to save")
    weights = get_peft_model_state_dict(encoder, save_embedding_layers=False)
    head = _head_of(model)
    if shared := _is_shared(model):
        weights |= {f"classifier.{n.removeprefix('head.')}": t for n, t in head.items()}
    # Depths differ between models of one width, and names alone would not show it.
    about = {"format": "pt", "num_hidden_layers": str(encoder.config.num_hidden_layers)}
    _write(path / WEIGHTS, {_PREFIX + name: t for name, t in weights.items()}, about)
    if shared:
        (path / HEAD).unlink(missing_ok=True)
    else:
        _write(path / HEAD, head, {"format": "pt", "pooling": model.pooling})
    write_json(path / CONFIG, _config(encoder.peft_config["default"], modules, base, shared))


def load_adapter(path: Path, model: SequenceClassifier) -> Trainable:
    """Put a saved adapter, and its head if it has one, on a model that carries none, to train on.

    Raises :class:`InputError` with all that is absent, damaged or does not fit.
    """
    refuse_adapted(model.encoder)
    config: Any = model.encoder.config
    saved = read_adapter(path, config)
    problems = [*mismatches(saved, model.encoder), *_head_mismatches(saved, model)]
    if saved.whole:
        what = f"holds {len(saved.whole)} of the model's own weights, such as {min(saved.whole)}"
        mend = "fold it into the model with `cedilla merge`, and load that"
        problems.append(Problem(where=str(saved.weights), what=what, mend=mend))
    stop_on_errors(problems)
    modules = attach(saved, model.encoder)
    if saved.head:
        model.load_state_dict(saved.head, strict=False)
    else:
        _note(f"{path} has no head; the model's is as it was")
    return freeze(model, saved.method, modules)


def read_adapter(path: Path, config: Config) -> SavedAdapter:
    """The adapter in a directory that peft or Cedilla wrote, for a model of that configuration.

    Raises :class:`InputError` where it is absent or damaged, is no LoRA or IA3, or was trained
    with settings that are not computed here.
    """
    settings = _read_config(path / CONFIG)
    file = next((path / n for n in (WEIGHTS, PICKLE) if (path / n).is_file()), None)
    if file is None:
        raise InputError.one(path / WEIGHTS, "not found", "name a directory with an adapter in it")
    named = _read_weights(file)
    parts: dict[str, dict[str, Tensor]] = {}
    head, whole, dead = {}, {}, set()
    for name, tensor in named.items():
        match = _PART.fullmatch(name)
        module = _own_name(match["module"] if match else name, config)
        if name.startswith("classifier.") and not match:
            head[f"head.{name.removeprefix('classifier.')}"] = tensor
        elif is_dead(module, config) or is_dead(f"{module}.weight", config):
            dead.add(module)
        elif match:
            parts.setdefault(module, {})[match["part"]] = tensor
        else:
            whole[module.replace(".base_layer.", ".")] = tensor
    if not parts:
        raise InputError.one(file, "holds no weights of LoRA or IA3", "is it an adapter of peft?")
    if dead:
        _note(f"{file} also changes {', '.join(sorted(dead))}, which no model uses: left out")
    own = path / HEAD if (path / HEAD).is_file() else None
    layers = _about(file).get("num_hidden_layers", "")
    return SavedAdapter(
        path=path,
        weights=file,
        config=settings,
        parts=parts,
        head={n: t.clone() for n, t in tensors(headers([own]))} if own else head,
        pooling=_about(own).get("pooling", "cls") if own else "cls",
        whole=whole,
        layers=int(layers) if layers.isdecimal() else None,
    )


def mismatches(saved: SavedAdapter, encoder: nn.Module) -> list[Problem]:
    """Why an adapter does not belong on a model: names, shapes, depth, absent parts."""
    linear = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Linear)}
    weights = {n: tuple(t.shape) for n, t in encoder.state_dict().items()}
    wrong = [(n, "belongs to no linear layer here") for n in saved.parts if n not in linear]
    wrong += [(n, "is no weight of this model") for n in saved.whole if n not in weights]
    for name in saved.parts.keys() & linear.keys():
        wrong += _misshapen(saved, name, weights[f"{name}.weight"])
    wrong += _unequal(saved.whole, weights)
    absent = _targeted(saved, encoder) - saved.parts.keys()
    wrong += [(n, "is a target, and has no weights in the file") for n in absent]
    depth: int = encoder.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    problems = _listed(saved.weights, wrong, "is it an adapter for another model?")
    if saved.layers not in (None, depth):
        what = f"was trained on a model of {saved.layers} layers; this one has {depth}"
        problems.append(Problem(where=str(saved.weights), what=what, mend="name its own base"))
    return problems


def attach(saved: SavedAdapter, encoder: nn.Module) -> tuple[str, ...]:
    """Put an adapter that fits (see `mismatches`) on a model; returns the modules that carry it."""
    from peft import set_peft_model_state_dict

    inject(encoder, saved.settings(), tuple(saved.parts))
    state = {f"{n}.{part}": t for n, parts in saved.parts.items() for part, t in parts.items()}
    set_peft_model_state_dict(encoder, state)
    return adapted_modules(encoder)


def _is_shared(model: SequenceClassifier) -> bool:
    """Whether Hugging Face's classifier computes what this model's head does."""
    plain = isinstance(model.head, ClassificationHead) and model.fusion is None
    config = model.encoder.config
    return plain and model.pooling == "cls" and isinstance(config, NTConfig)


def _head_of(model: SequenceClassifier) -> dict[str, Tensor]:
    """Weights of head and fusion."""
    return {n: t for n, t in model.state_dict().items() if not n.startswith("encoder.")}


def _config(settings: Any, modules: tuple[str, ...], base: str, head: bool) -> dict[str, Any]:
    """What peft needs to know, under its own names; all else has its defaults."""
    from peft import __version__ as peft_version

    kind = settings.peft_type.value
    chosen = (
        {"feedforward_modules": sorted(settings.feedforward_modules)}
        if kind == "IA3"
        else {key: getattr(settings, key) for key in _HANDED_ON} | {"bias": "none"}
    )
    return {
        "peft_type": kind,
        "peft_version": peft_version,
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        # In full: peft takes a name for the end of one, and `output.dense` is the end of two.
        "target_modules": list(modules),
        "modules_to_save": ["classifier"] if head else None,
        **chosen,
    }


def _write(path: Path, weights: Mapping[str, Tensor], about: dict[str, str]) -> None:
    state = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
    with whole_file(path) as draft:
        save_file(state, draft, metadata=about)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = "name a directory with an adapter in it"
        raise InputError.one(path, "not found", mend) from None
    except ValueError as error:
        raise InputError.one(path, f"damaged: {error}", "fetch or copy it again") from None
    if not isinstance(config, dict) or not config.get("peft_type"):
        raise InputError.one(path, "says no peft_type", "is it an adapter of peft?")
    if config["peft_type"] not in ("LORA", "IA3"):
        what = f"is {config['peft_type']}; LoRA and IA3 can be read"
        raise InputError.one(path, what, "train one of these, or merge it with peft")
    stop_on_errors(_setting_problems(path, config))
    return config


def _setting_problems(path: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in config.items():
        if key in _HANDED_ON and value is not None:
            if not isinstance(value, _HANDED_ON[key]):
                yield Problem(where=f"{path} {key}", what=f"is {value!r}", mend="restore the file")
        elif key == "init_lora_weights":
            if _CHANGES_BASE.search(str(value)):
                what = f"is {value}, which changes the base as well"
                yield Problem(where=f"{path} {key}", what=what, mend="convert it to LoRA with peft")
        # The settings of an initialisation, such as `eva_config`, are of no account afterwards.
        elif value and key not in _SILENT and not key.endswith(("runtime_config", "eva_config")):
            what = f"is {value!r}, which is not computed here"
            yield Problem(where=f"{path} {key}", what=what, mend="merge it with peft instead")


def _read_weights(file: Path) -> dict[str, Tensor]:
    named = {n.removeprefix(_PREFIX): t.clone() for n, t in tensors(headers([file]))}
    broken = [name for name, t in named.items() if not bool(torch.isfinite(t).all())]
    why = "holds NaN or infinity"
    stop_on_errors(_listed(file, [(name, why) for name in broken], "train it anew"))
    return named


def _about(file: Path) -> dict[str, str]:
    """What a file of safetensors says beside its weights."""
    if file.suffix == ".bin":
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def _own_name(name: str, config: Config) -> str:
    """A name as the model has it: adapters of transformers' bare EsmModel lack ``esm.``."""
    bare = name.startswith(("encoder.", "embeddings.", "contact_head."))
    return f"esm.{name}" if bare and isinstance(config, NTConfig) else name


def _misshapen(saved: SavedAdapter, name: str, size: tuple[int, ...]) -> list[tuple[str, str]]:
    """The parts of one adapter, on a linear layer of `size` (outputs, inputs), that do not fit."""
    outputs, inputs = size
    wanted: dict[str, tuple[int, ...]]
    if saved.method == "ia3":
        along_inputs = saved.parts[name].get("ia3_l", torch.empty(0)).shape[0] == 1
        wanted = {"ia3_l": (1, inputs) if along_inputs else (outputs, 1)}
    else:
        rank = _rank(saved.config, name)
        wanted = {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}
        if saved.method == "dora":
            wanted["lora_magnitude_vector"] = (outputs,)
    found = saved.parts[name]
    wrong = [(f"{name}.{part}", "is missing") for part in wanted if part not in found]
    wrong += [(f"{name}.{p}", f"is no part of {saved.method}") for p in found if p not in wanted]
    return wrong + [(f"{name}.{part}", what) for part, what in _unequal(found, wanted)]


def _rank(config: Mapping[str, Any], name: str) -> int:
    from peft.utils.other import get_pattern_key

    ranks: dict[str, Any] = config.get("rank_pattern") or {}
    return int(ranks.get(get_pattern_key(list(ranks), name)) or config.get("r") or 8)


def _unequal(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str]]:
    """Names of both whose shapes differ, and how."""
    return [
        (name, f"has shape {tuple(tensor.shape)}; the model's is {wanted[name]}")
        for name, tensor in found.items()
        if name in wanted and tuple(tensor.shape) != wanted[name]
    ]


def _listed(where: Path, wrong: list[tuple[str, str]], mend: str) -> list[Problem]:
    """The first few of each kind; weights that differ by the number of their block are one kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, what in sorted(wrong):
        kinds.setdefault((re.sub(r"\.\d+\.", ".", name), what), []).append(name)
    return [
        problem
        for (_, what), names in kinds.items()
        for problem in listed(where, names, lambda _, what=what: what, mend)  # type: ignore[misc]
    ]


def _targeted(saved: SavedAdapter, encoder: nn.Module) -> set[str]:
    """The linear layers of the blocks that the settings' own targets name on this model."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    named = {key: saved.config[key] for key in keys if saved.config.get(key)}
    if not named.get("target_modules"):
        return set()
    config = LoraConfig(**named)
    return {name for name in linear_in_blocks(encoder) if check_target_module_exists(config, name)}


def _head_mismatches(saved: SavedAdapter, model: SequenceClassifier) -> list[Problem]:
    """Why a saved head is not the model's; nothing where there is no saved head."""
    if not saved.head:
        return []
    mine = {n: tuple(t.shape) for n, t in _head_of(model).items()}
    wrong = [(n, "is missing") for n in mine if n not in saved.head]
    wrong += [(n, "is not in this model") for n in saved.head if n not in mine]
    wrong += _unequal(saved.head, mine)
    mend = "build the model with the adapter's classes, pooling and features"
    problems = _listed(saved.path, wrong, mend)
    if saved.pooling != model.pooling:
        what = f"its head reads {saved.pooling!r}; the model's reads {model.pooling!r}"
        problems.append(Problem(where=str(saved.path), what=what, mend=mend))
    return problems


def _note(text: str) -> None:
    console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)
