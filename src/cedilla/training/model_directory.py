"""A fine-tuned model as a directory: whole, portable, and read again without any pickle.

============================  =============================================================
``classifier.json``           what it is: target, head, preprocessing, base, calibration, and
                              the SHA-256 of every other file
``config.json``,              the encoder, where the method changed its weights; else the base
``model.safetensors``         is named, with a hash of its weights, and not copied
``adapter/``                  adapters in peft's own format
``head.safetensors``          the head
``familiarity.safetensors``   what training rows are like
``README.md``                 the model card
============================  =============================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import sha256, whole_file, write_json, write_text
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.families import config_from, settings_of
from cedilla.models.heads import Pooling
from cedilla.models.predictor import Precision
from cedilla.models.shards import SAFETENSORS, tensors
from cedilla.models.weights import load_directory, read_config, read_headers, write_config
from cedilla.models.zoo import FROM_SCRATCH, directory
from cedilla.training.adapter_files import attach, mismatches, read_adapter, save_adapter
from cedilla.training.adapters import PRESETS, Method, adapted_modules
from cedilla.training.calibration import Calibration
from cedilla.training.familiarity import Cloud, Familiarity
from cedilla.training.finetuned import FinetunedModel, Preprocessing
from cedilla.training.long_sequences import Long
from cedilla.training.merge import fold
from cedilla.training.model_card import model_card
from cedilla.training.plan import Plan
from cedilla.training.splits import Splits
from cedilla.training.targets import Target
from cedilla.version import __version__

FORMAT = 1
CLASSIFIER, HEAD, FAMILIARITY, ADAPTER = (
    "classifier.json", "head.safetensors", "familiarity.safetensors", "adapter",
)  # fmt: skip
CHANGES_WEIGHTS: tuple[Method, ...] = ("full", "top", "bias")
_CNN = "cedilla-cnn"  # its `model_type`; it belongs to no family of language models
COPY = "copy the model directory anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The model that a fine-tuning began with, where it must be at hand to predict.

    sha256: of its weights, see :func:`weights_digest`. config: what its ``config.json`` says.
    """

    model: str
    sha256: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """What ``classifier.json`` holds.

    began: name of the model that the fine-tuning began with. base: the same with its hash, None
    where the directory has all weights itself. borders, lengths, gc, median: of
    :class:`Familiarity`. files: the SHA-256 of the other files.
    """

    target: Target
    pooling: Pooling
    dropout: float
    preprocessing: Preprocessing
    method: Method
    began: str
    base: Base | None
    calibration: Calibration
    borders: Mapping[str, float]
    lengths: tuple[int, int]
    gc: tuple[float, float]
    median: float
    files: Mapping[str, str]


def save_model(
    path: Path,
    plan: Plan,
    splits: Splits,
    *,
    calibration: Calibration,
    familiarity: Familiarity,
    metrics: Mapping[str, Any],
    base: str,
    long: Long,
    pretrained: bool = True,
) -> None:
    """Write the model of a finished training, whole or not at all; one that stands there goes.

    Parameters
    ----------
    path:
        The directory.
    plan:
        Its classifier holds the best weights.
    splits:
        For the model card.
    calibration, familiarity:
        Measured with these weights.
    metrics:
        By split, and the intervals, for the model card.
    base:
        The model that the training began with: a name of the zoo, or a directory.
    long:
        What became of long sequences.
    pretrained:
        False for random weights of that shape: then all weights are written.
    """
    draft = path.with_name(f".{path.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    classifier = plan.classifier
    named = pretrained and plan.method not in CHANGES_WEIGHTS and base not in FROM_SCRATCH
    if not named:
        _save_encoder(draft, classifier.encoder)
    if plan.method in PRESETS:
        save_adapter(draft / ADAPTER, classifier, base=base)
    _save(draft / HEAD, classifier.head.state_dict())
    _save(draft / FAMILIARITY, _arrays(familiarity))
    files = sorted(file for file in draft.rglob("*") if file.is_file())
    about = Classifier(
        target=plan.target,
        pooling=classifier.pooling,
        dropout=plan.adapter.dropout,
        preprocessing=Preprocessing(
            k=plan.tokenizer.k,
            version=plan.tokenizer.version,
            max_tokens=plan.tokenizer.max_tokens,
            strands=plan.schedule.strands,
            long=long,
        ),
        method=plan.method,
        began=base,
        base=_base(base) if named else None,
        calibration=calibration,
        borders={"states": familiarity.states.border, "kmers": familiarity.kmers.border},
        lengths=familiarity.lengths,
        gc=familiarity.gc,
        median=familiarity.median,
        files={file.relative_to(draft).as_posix(): sha256(file) for file in files},
    )
    write_text(draft / "README.md", model_card(about, plan, splits, metrics))
    write_json(draft / CLASSIFIER, {"format": FORMAT, "cedilla": __version__, **asdict(about)})
    shutil.rmtree(path, ignore_errors=True)
    os.replace(draft, path)


def load_finetuned(
    path: str | Path,
    base: str | Path | None = None,
    *,
    device: str | None = None,
    precision: Precision = "float32",
) -> FinetunedModel:
    """Load a fine-tuned model for prediction.

    Parameters
    ----------
    path:
        The run directory of a fine-tuning, or the ``model/`` in it, wherever it was moved.
    base:
        Where the model is that the fine-tuning began with, if adapters or a head alone were
        trained and it lies in another place than it did then: a directory.
    device:
        Such as cpu or cuda; the first GPU if there is one.
    precision:
        float32 is exact; auto is the fastest that the device does well.

    Returns
    -------
    FinetunedModel
        Its ``predict(sequences)`` gives a data frame.

    Raises
    ------
    InputError
        When files are absent or damaged, or the base is absent or another one.
    """
    path = model_path(path)
    about = read_classifier(path)
    encoder = _encoder(path, about, base)
    if (path / ADAPTER).is_dir():
        adapter = read_adapter(path / ADAPTER, encoder.config)  # type: ignore[arg-type]
        stop_on_errors(mismatches(adapter, encoder))
        attach(adapter, encoder)
        fold(encoder)
    target = about.target
    classifier = SequenceClassifier(
        encoder,
        target.outputs,
        pooling=about.pooling,
        dropout=about.dropout,
        per_base=target.kind == "per_base",
    )
    _fill(classifier.head, path / HEAD)
    return FinetunedModel(
        classifier,
        target=target,
        preprocessing=about.preprocessing,
        calibration=about.calibration,
        familiarity=_familiarity(path, about),
        precision=precision,
        device=device,
    )


def model_path(path: str | Path) -> Path:
    """The model directory: `path`, or the one in a run directory."""
    path = Path(path)
    inside = path / "model"
    return inside if not (path / CLASSIFIER).exists() and inside.is_dir() else path


def read_classifier(path: Path) -> Classifier:
    """What a model directory says of itself, and of its files that they are whole.

    Raises :class:`InputError` with all files that are absent or altered.
    """
    file = path / CLASSIFIER
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            what = f"was written by Cedilla {values['cedilla']}, in a format of its own"
            raise InputError.one(file, what, "install that version")
        del values["cedilla"]
        about = _parsed(values)
    except (FileNotFoundError, NotADirectoryError):
        mend = "name the run directory of a fine-tuning, or the model/ in it"
        raise InputError.one(file, "not found", mend) from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError.one(file, f"damaged: {type(error).__name__}: {error}", COPY) from None
    stop_on_errors(
        Problem(where=str(path / name), what="is damaged" if here.is_file() else "not found",
                mend=COPY)
        for name, digest in about.files.items()
        if not (here := path / name).is_file() or sha256(here) != digest
    )  # fmt: skip
    return about


def weights_digest(path: Path) -> str:
    """SHA-256 of a model's weights in float32 by name, however its files store them."""
    stored = read_headers(path, read_config(path / "config.json"))
    digests = {
        name: hashlib.sha256(tensor.float().contiguous().numpy().data).hexdigest()
        for name, tensor in tensors(stored)
    }
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _arrays(familiarity: Familiarity) -> dict[str, Tensor]:
    clouds = {"states": familiarity.states, "kmers": familiarity.kmers}
    return {
        f"{name}.{part}": torch.from_numpy(getattr(cloud, part))
        for name, cloud in clouds.items()
        for part in ("mean", "precision")
    }


def _familiarity(path: Path, about: Classifier) -> Familiarity:
    arrays = {name: tensor.numpy() for name, tensor in _load(path / FAMILIARITY).items()}
    states, kmers = (
        Cloud(
            mean=arrays[f"{name}.mean"],
            precision=arrays[f"{name}.precision"],
            border=about.borders[name],
        )
        for name in ("states", "kmers")
    )
    return Familiarity(
        states=states, kmers=kmers, lengths=about.lengths, gc=about.gc, median=about.median
    )


def _base(name: str) -> Base:
    path = directory(name)
    config = settings_of(read_config(path / "config.json"))
    return Base(model=name, sha256=weights_digest(path), config=config)


def _parsed(values: dict[str, Any]) -> Classifier:
    target, base = values.pop("target"), values.pop("base")
    tuples: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item for key, item in target.items()
    }
    return Classifier(
        target=Target(**tuples),
        preprocessing=Preprocessing(**values.pop("preprocessing")),
        base=Base(**base) if base else None,
        calibration=Calibration(**values.pop("calibration")),
        lengths=tuple(values.pop("lengths")),
        gc=tuple(values.pop("gc")),
        **values,
    )


def _encoder(path: Path, about: Classifier, base: str | Path | None) -> nn.Module:
    """The encoder before adapters: the directory's own, or its base."""
    if about.base is None:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if settings.pop("model_type", None) != _CNN:
            return load_directory(path)
        encoder = DilatedCNN(CNNConfig(**settings))
        _fill(encoder, path / SAFETENSORS)
        return encoder
    name = base or about.base.model
    try:
        found = directory(name)
        config = read_config(found / "config.json")
    except InputError as error:
        what = f"holds no weights of its base, {about.base.model!r}, which is not at hand"
        mend = "pass --base with the directory of that model"
        first = Problem(where=str(path), what=what, mend=mend)
        raise InputError([first, *error.problems]) from None
    same = config == config_from(about.base.config) and weights_digest(found) == about.base.sha256
    if not same:
        what = f"is another model than {about.base.model!r}, which was fine-tuned"
        mend = f"pass --base with the one whose weights have sha256 {about.base.sha256}"
        raise InputError.one(found, what, mend)
    return load_directory(found)


def _save_encoder(path: Path, encoder: nn.Module) -> None:
    """Write an encoder's own weights, without its adapters."""
    config: Any = encoder.config
    if isinstance(encoder, DilatedCNN):
        write_json(path / "config.json", {"model_type": _CNN, **asdict(config)})
    else:
        write_config(path, config)
    adapted = tuple(f"{name}." for name in adapted_modules(encoder))
    _save(
        path / SAFETENSORS,
        {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in encoder.state_dict().items()
            if not name.startswith(adapted) or ".base_layer." in name
        },
    )


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as draft:
        save_file(whole, draft, metadata={"format": "pt"})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError.one(path, f"damaged: {error}", COPY) from None


def _fill(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(_load(path))
    except RuntimeError:
        raise InputError.one(path, f"does not belong to {CLASSIFIER}", COPY) from None
