"""Cedilla: DNA language models that read methylation.

Every verb of the command line is a function here: ``cedilla finetune --train a.csv --out DIR`` is
``cedilla.finetune(train="a.csv", out="DIR")``. Names are imported when they are first used, so
that ``import cedilla`` is quick.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cedilla.version import __version__

if TYPE_CHECKING:
    from cedilla.config import run
    from cedilla.demo import demo
    from cedilla.dna.tokenizer import Tokenizer
    from cedilla.doctor import doctor
    from cedilla.evaluation.compare import compare
    from cedilla.evaluation.evaluate import evaluate
    from cedilla.inference.embed import embed
    from cedilla.inference.predict import predict
    from cedilla.inference.predict_mask import predict_mask
    from cedilla.methylation.check import MethylationDataValidator, check
    from cedilla.methylation.simulate import simulate
    from cedilla.models.convert import models_convert
    from cedilla.models.export import models_export
    from cedilla.models.fetch import models_get
    from cedilla.models.zoo import load, models, models_show
    from cedilla.report.report import report
    from cedilla.tasks.download import data_get, data_list
    from cedilla.training.finetune import finetune
    from cedilla.training.merge import merge
    from cedilla.training.model_directory import load_finetuned
    from cedilla.training.pretrain import pretrain
    from cedilla.training.tune import tune

T = TypeVar("T")

_HOMES = {
    "MethylationDataValidator": "cedilla.methylation.check",
    "Tokenizer": "cedilla.dna.tokenizer",
    "check": "cedilla.methylation.check",
    "compare": "cedilla.evaluation.compare",
    "data_get": "cedilla.tasks.download",
    "data_list": "cedilla.tasks.download",
    "demo": "cedilla.demo",
    "doctor": "cedilla.doctor",
    "embed": "cedilla.inference.embed",
    "evaluate": "cedilla.evaluation.evaluate",
    "finetune": "cedilla.training.finetune",
    "load": "cedilla.models.zoo",
    "load_finetuned": "cedilla.training.model_directory",
    "merge": "cedilla.training.merge",
    "models": "cedilla.models.zoo",
    "models_convert": "cedilla.models.convert",
    "models_export": "cedilla.models.export",
    "models_get": "cedilla.models.fetch",
    "models_show": "cedilla.models.zoo",
    "predict": "cedilla.inference.predict",
    "predict_mask": "cedilla.inference.predict_mask",
    "pretrain": "cedilla.training.pretrain",
    "report": "cedilla.report.report",
    "run": "cedilla.config",
    "simulate": "cedilla.methylation.simulate",
    "tune": "cedilla.training.tune",
}

__all__ = [
    "MethylationDataValidator",
    "Tokenizer",
    "__version__",
    "check",
    "compare",
    "data_get",
    "data_list",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "finetune",
    "load",
    "load_finetuned",
    "merge",
    "models",
    "models_convert",
    "models_export",
    "models_get",
    "models_show",
    "predict",
    "predict_mask",
    "pretrain",
    "report",
    "run",
    "simulate",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cedilla' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value = as_called(value) if inspect.isfunction(value) else value
    return value


def as_called(function: Callable[..., T]) -> Callable[..., T]:
    """`function` with the lenience and the rigour of the command line.

    A path may be a string, several names one string with commas (``dev="chr7,chr10"``), and a
    single number stands where several may. Raises :class:`InputError` for a word that is none of
    a parameter's choices.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> T:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            hint = hints.get(name)
            _refuse_other_choices(f"cedilla.{function.__name__}", name, value, hint)
            if isinstance(value, str | Path):
                bound.arguments[name] = _meant(value, hint)
            elif isinstance(value, int) and hint == tuple[int, ...]:
                bound.arguments[name] = (value,)
        return function(*bound.args, **bound.kwargs)

    return called


def _meant(value: str | Path, hint: Any) -> Any:
    if hint in (Path, Path | None):
        return Path(value)
    if hint == tuple[Path, ...]:
        return (Path(value),)
    if hint == tuple[str, ...]:
        return tuple(word.strip() for word in str(value).split(","))
    return str(value) if hint is str else value


def _refuse_other_choices(where: str, name: str, value: Any, hint: Any) -> None:
    for option in (hint, *get_args(hint)):
        if get_origin(option) is Literal and isinstance(value, str):
            choices = get_args(option)
            if value not in choices:
                from cedilla.errors import InputError

                mend = f"choose {', '.join(map(str, choices))}"
                raise InputError.one(where, f"{name}={value!r} is no choice", mend)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing ``cedilla.report.page`` must not turn ``cedilla.report`` from verb to module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
