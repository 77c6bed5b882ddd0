"""Whether a sequence is like those that a model was trained on.

A model answers whatever it is asked. Cheap looks tell when an answer is not to be relied on: the
pooled last hidden state, or the frequencies of 4-mers, lie far from those of the training rows, by
the Mahalanobis distance under a shrunk covariance (Lee et al., NeurIPS 2018; Ledoit & Wolf, 2004),
or length or GC content lie outside of their range. A genome holds much that is strange, such as
repeats, so that a single short sequence is hardly ever beyond what the training had; whether many
sequences are, their median distance tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cedilla.models.classifier import SequenceClassifier
from cedilla.models.heads import pool
from cedilla.models.kmers import count_kmers
from cedilla.training.batches import SequenceData

ROWS = 2000  # whose states are taken, of train and of dev
QUANTILE = 0.99  # of dev rows that are called familiar
K = 4
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cloud:
    """Where points lie: mean (D,), precision (D, D), and the distance `border` where it ends."""

    mean: Floats
    precision: Floats
    border: float

    @classmethod
    def fit(cls, train: Floats, dev: Floats) -> Self:
        """Of training points (N, D); 99 % of the dev points (M, D) lie within the border."""
        from sklearn.covariance import LedoitWolf

        fitted = LedoitWolf().fit(train.astype(np.float64))
        mean, precision = fitted.location_.astype(np.float32), fitted.precision_.astype(np.float32)
        found = cls(mean=mean, precision=precision, border=1.0)
        border = float(np.quantile(found.distances(dev), QUANTILE))
        # Where all points are one, any other is far.
        return cls(mean=mean, precision=precision, border=max(border, 1e-6))

    def distances(self, points: Floats) -> Floats:
        """Of points (N, D), in units of the border: (N,)."""
        apart = points.astype(np.float64) - self.mean
        squared = np.einsum("nd,nd->n", apart @ self.precision, apart)
        return (np.sqrt(np.maximum(squared, 0)) / self.border).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Familiarity:
    """What training rows are like.

    states, kmers: where their pooled states lie, and their frequencies of 4-mers. lengths, gc:
    lowest and highest, in bases and as a share of the known bases. median: of the dev rows'
    `distance`.
    """

    states: Cloud
    kmers: Cloud
    lengths: tuple[int, int]
    gc: tuple[float, float]
    median: float

    def columns(self, states: Floats, sequences: Sequence[str]) -> dict[str, Any]:
        """What is said of sequences with pooled states (N, D), by column.

        `distance`: the larger one of states and k-mers, in units of the border; `unlike`: what is
        strange, of state, kmers, length and gc; `familiar`: nothing is.
        """
        of_states = self.states.distances(states)
        of_kmers = self.kmers.distances(kmer_frequencies(sequences))
        strange: dict[str, Any] = {
            "state": of_states > 1,
            "kmers": of_kmers > 1,
            "length": [not _within(len(sequence), self.lengths) for sequence in sequences],
            "gc": [not _within(gc_content(sequence), self.gc) for sequence in sequences],
        }
        unlike = [
            ";".join(name for name, rows in strange.items() if rows[i])
            for i in range(len(sequences))
        ]
        return {
            "distance": np.maximum(of_states, of_kmers),
            "familiar": np.array([not why for why in unlike]),
            "unlike": unlike,
        }


def fit_familiarity(
    states: Mapping[str, Floats], sequences: Mapping[str, Sequence[str]]
) -> Familiarity:
    """From pooled states (N, D) of rows of ``train`` and ``dev``, and sequences.

    The dev sequences are those of the rows; of the training there may be more.
    """
    of_states = Cloud.fit(states["train"], states["dev"])
    train, dev = (kmer_frequencies(sequences[split]) for split in ("train", "dev"))
    of_kmers = Cloud.fit(train, dev)
    lengths = [len(sequence) for sequence in sequences["train"]]
    gc = [gc_content(sequence) for sequence in sequences["train"] if sequence.strip("N")]
    distance = np.maximum(of_states.distances(states["dev"]), of_kmers.distances(dev))
    return Familiarity(
        states=of_states,
        kmers=of_kmers,
        lengths=(min(lengths), max(lengths)),
        gc=(min(gc, default=0.0), max(gc, default=1.0)),
        median=float(np.median(distance)),
    )


@torch.no_grad()
def pooled_states(
    classifier: SequenceClassifier, data: SequenceData, *, strands: bool, size: int
) -> Floats:
    """Pooled last hidden states (N, D) of some rows: the mean over pieces and strands.

    Of more than `ROWS` rows so many are drawn; `size` pieces go through the model at once.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    encode: Any = classifier.encoder.encode
    rows = _drawn(len(data))
    pieces = np.flatnonzero(np.isin(data.owners, rows))
    pieces = pieces[np.argsort(-data.lengths[pieces], kind="stable")]
    total: dict[int, Any] = dict.fromkeys(rows.tolist(), 0.0)
    for strand in range(1 + strands):
        for start in range(0, len(pieces), size):
            some = pieces[start : start + size]
            batch = data.batch(some, np.full(len(some), strand))
            ids, mask = batch.ids.to(device), batch.mask.to(device)
            pooled = pool(encode(ids, mask), mask, classifier.pooling).float().cpu().numpy()
            for row, state in zip(batch.rows.tolist(), pooled, strict=True):
                total[row] = total[row] + state
    count = np.bincount(data.owners, minlength=len(data))[rows] * (1 + strands)
    return np.asarray(np.stack(list(total.values())) / count[:, None], dtype=np.float32)


def kmer_frequencies(sequences: Sequence[str]) -> Floats:
    """Of canonical 4-mers among those without N: (N, 136); zeros where there is none."""
    counts = count_kmers(list(sequences), K).astype(np.float32)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def gc_content(sequence: str) -> float:
    """The share of G and C among the known bases of a clean sequence; NaN where none is known."""
    known = len(sequence) - sequence.count("N")
    return (sequence.count("G") + sequence.count("C")) / known if known else float("nan")


def familiarity_of(
    classifier: SequenceClassifier,
    data: Mapping[str, SequenceData],
    sequences: Mapping[str, Sequence[str]],
    *,
    strands: bool,
    size: int,
) -> Familiarity:
    """From a trained classifier, and data and sequences of ``train`` and ``dev``.

    The dev sequences are those of the data; of the training there may be more.
    """
    states = {
        split: pooled_states(classifier, data[split], strands=strands, size=size)
        for split in ("train", "dev")
    }
    dev = [sequences["dev"][row] for row in _drawn(len(data["dev"]))]
    return fit_familiarity(states, {"train": sequences["train"], "dev": dev})


def _drawn(rows: int) -> NDArray[np.integer]:
    """Of more than `ROWS` rows so many."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:ROWS])


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]
