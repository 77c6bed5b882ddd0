"""A fine-tuned model for prediction: sequences in, calibrated answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cedilla.dna.alphabet import clean, first_forbidden, reverse_complement
from cedilla.dna.tables import listed
from cedilla.dna.tokenizer import Tokenizer, pad
from cedilla.errors import stop_on_errors
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.families import LanguageModel, prepare
from cedilla.models.heads import pool
from cedilla.models.hybrid import Hybrid
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.padded import TILE_TOKENS
from cedilla.models.predictor import Precision, batch_tokens, device_named
from cedilla.training.batches import base_places
from cedilla.training.calibration import Calibration
from cedilla.training.familiarity import Familiarity
from cedilla.training.long_sequences import Long, fit
from cedilla.training.predictions import prediction_columns
from cedilla.training.targets import Target

LONG_MEND = "cut it, or pass --long crop or tile"
LIKELY = 0.5  # a label of several is called at this probability


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How sequences reach the model: as in its training, so that the same ones get the same answer.

    k, version, max_tokens: of the tokenizer. strands: whether both are read, and averaged. long:
    what becomes of sequences longer than the model takes.
    """

    k: int
    version: int
    max_tokens: int
    strands: bool
    long: Long

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return Tokenizer(self.k, version=self.version, max_tokens=self.max_tokens)


class FinetunedModel:
    """What :func:`cedilla.load_finetuned` gives.

    Attributes
    ----------
    target:
        What the model was trained to say.
    preprocessing, calibration, familiarity:
        As they were chosen or measured in the training.
    batch_tokens:
        About so many tokens are computed at once.
    path:
        The path of computation by name.
    """

    def __init__(
        self,
        classifier: SequenceClassifier,
        *,
        target: Target,
        preprocessing: Preprocessing,
        calibration: Calibration,
        familiarity: Familiarity,
        precision: Precision = "float32",
        device: str | None = None,
    ) -> None:
        """Takes `classifier`, adapters folded in, over: its encoder cannot be used afterwards."""
        self.target, self.preprocessing = target, preprocessing
        self.calibration, self.familiarity = calibration, familiarity
        chosen = device_named(device)
        self.batch_tokens = batch_tokens(chosen)
        self._head = classifier.head.cpu().eval()
        self._pooling = classifier.pooling
        self._tokenizer = preprocessing.tokenizer
        self._encoder: _Encoder
        if isinstance(classifier.encoder, NucleotideTransformer | Hybrid):
            language_model: LanguageModel = classifier.encoder
            self._encoder = prepare(
                language_model, precision=precision, device=chosen, release=True
            )
        else:
            self._encoder = _Plain(classifier.encoder.to(chosen).eval())
        self.path = self._encoder.path

    def predict(self, sequences: Sequence[str]) -> pd.DataFrame:
        """One row a sequence, in their order, with the columns that ``cedilla predict`` writes.

        Raises :class:`InputError` with all sequences that are empty, hold a character that is no
        nucleotide code, or are too long for a model that refuses such.
        """
        if isinstance(sequences, str):
            raise TypeError("predict takes a list of sequences: pass [sequence]")
        _check(sequences)
        return pd.DataFrame(self.columns([clean(sequence) for sequence in sequences]))

    def columns(self, sequences: Sequence[str]) -> dict[str, Any]:
        """What is said of clean sequences, by column.

        `predicted` (not for numbers), the columns of
        :func:`cedilla.training.predictions.prediction_columns` with the names of classes, the same
        calibrated (``calibrated…`` for ``probability…``), and those of
        :meth:`Familiarity.columns`.
        """
        logits, states = self.read(sequences)
        said = self._said(logits)
        found = self._predicted(logits) | said
        if any(name.startswith("probability") for name in said):
            calibrated = self._said(_each(self.calibration, logits))
            found |= {n.replace("probability", "calibrated", 1): v for n, v in calibrated.items()}
        return found | self.familiarity.columns(states, sequences)

    @torch.no_grad()
    def read(self, sequences: Sequence[str]) -> tuple[Tensor | list[Tensor], np.ndarray]:
        """Logits (N, C) of clean sequences, and their pooled states (N, D): means over strands and
        pieces. With an output a base, logits are a list of (S_i, C)."""
        how, target = self.preprocessing, self.target
        fitted = fit(sequences, k=how.k, max_tokens=how.max_tokens, how=how.long)
        rows = self._tokenizer.encode_ragged(fitted.sequences)
        self._tokenizer.refuse_long(rows, mend=LONG_MEND)
        if how.strands:
            turned = [reverse_complement(piece) for piece in fitted.sequences]
            rows += self._tokenizer.encode_ragged(turned)
        n = len(fitted.sequences)
        share = 1 / (np.bincount(fitted.owners, minlength=len(sequences)) * (1 + how.strands))
        logits: list[Any] = [0.0] * len(sequences)
        states: list[Any] = [0.0] * len(sequences)
        for batch in _batches([len(row) for row in rows], self.batch_tokens):
            some = [rows[i] for i in batch]
            for i, out, state in zip(batch, *self._outputs(some), strict=True):
                row = fitted.owners[i % n]
                if target.kind == "per_base" and i >= n:
                    out = out.flip(0)  # noqa: PLW2901
                logits[row] = logits[row] + out * share[row]
                states[row] = states[row] + state * share[row]
        found = logits if target.kind == "per_base" else torch.stack(logits)
        return found, torch.stack(states).float().numpy()

    def _outputs(self, rows: Sequence[np.ndarray]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits of rows of token ids, of each base in its place, and the rows' pooled states."""
        hidden = [states[0] for states in self._encoder.hidden(rows)]
        pooled = torch.cat(
            [pool(h[None], torch.ones(1, len(h), dtype=torch.bool), self._pooling) for h in hidden]
        )
        if self.target.kind != "per_base":
            return list(self._head(pooled)), list(pooled)
        outputs = [self._head(h).reshape(-1, self.target.outputs) for h in hidden]
        places = [torch.from_numpy(base_places(row, self._tokenizer)) for row in rows]
        return [out[at] for out, at in zip(outputs, places, strict=True)], list(pooled)

    def _said(self, logits: Tensor | list[Tensor]) -> dict[str, Any]:
        """Predictions by column, with the names of classes where they have some."""
        target = self.target
        found = prediction_columns(target, _each(target.predictions, logits))
        if target.kind not in ("classes", "per_base") or _numbered(target):
            return found
        first = 1 if "probability" in found else 0
        return {f"probability_{target.names[first + c]}": found[key] for c, key in enumerate(found)}

    def _predicted(self, logits: Tensor | list[Tensor]) -> dict[str, Any]:
        """The most probable class, of a sequence or of each base; the labels that are likely."""
        kind, names = self.target.kind, np.array(self.target.names, dtype=object)
        if kind == "classes":
            assert isinstance(logits, Tensor)
            called = logits.argmax(dim=1).numpy()
            return {"predicted": called if _numbered(self.target) else names[called]}
        if kind == "per_base":
            return {"predicted": ["".join(names[row.argmax(dim=1).numpy()]) for row in logits]}
        if kind == "multilabel":
            likely = self.target.predictions(torch.as_tensor(logits)) >= LIKELY
            return {"predicted": [";".join(names[row]) for row in likely]}
        return {}


class _Encoder(Protocol):
    """What :mod:`cedilla.models.families` prepares."""

    path: str

    def hidden(self, rows: Sequence[np.ndarray]) -> list[Tensor]:
        """The last hidden states (1, L_i, D) of rows of token ids, on the CPU."""
        ...


class _Plain:
    """The same for a model without a path of its own: rows of like length side by side."""

    path = "PyTorch float32"

    def __init__(self, encoder: nn.Module) -> None:
        self._encode: Any = encoder.encode
        self._device = next(encoder.parameters()).device
        self._tokens = TILE_TOKENS["cpu" if self._device.type == "cpu" else "cuda"]

    def hidden(self, rows: Sequence[np.ndarray]) -> list[Tensor]:
        """The last hidden states (1, L_i, D) of rows of token ids, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while order:
            n = max(1, self._tokens // len(rows[order[0]]))
            tile, order = order[:n], order[n:]
            ids, mask = pad([rows[i] for i in tile])
            hidden = self._encode(ids.to(self._device), mask.to(self._device)).cpu()
            for i, states in zip(tile, hidden, strict=True):
                found[i] = states[None, : len(rows[i])]
        return found


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of rows, the longest first, as many at once as have about `tokens` together."""
    batch: list[int] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch.append(i)
        held += lengths[i]
        if held >= tokens:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _check(sequences: Sequence[str]) -> None:
    where = Path("input")
    empty = [f"sequence {n}" for n, bases in enumerate(sequences, start=1) if not bases]
    problems = listed(where, empty, lambda _: "is empty", "leave it out")
    forbidden = {
        f"sequence {n}": f"{bases[at]!r} at position {at + 1} is no nucleotide code"
        for n, bases in enumerate(sequences, start=1)
        if (at := first_forbidden(bases)) is not None
    }
    mend = "use A, C, G, T, N or another IUPAC code"
    problems += listed(where, list(forbidden), list(forbidden.values()).__getitem__, mend)
    stop_on_errors(problems)


def _each(function: Any, logits: Tensor | list[Tensor]) -> Any:
    return function(logits) if isinstance(logits, Tensor) else [function(row) for row in logits]


def _numbered(target: Target) -> bool:
    """Whether the labels were class numbers, which need no names."""
    return target.names == tuple(map(str, range(target.outputs)))
