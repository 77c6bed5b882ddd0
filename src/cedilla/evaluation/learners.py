"""What learns from an arm's inputs: gradient boosting on k-mers, or a fused network.

Both give the logit of class 1 for every row, after seeing the training rows (and, to choose
among epochs, the dev rows) alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.kmers import count_kmers
from cedilla.models.zoo import FROM_SCRATCH, build
from cedilla.run_directory import Run
from cedilla.training.adapters import Adapter, default_learning_rate, prepare
from cedilla.training.batches import SequenceData
from cedilla.training.loop import Finetuner, Schedule
from cedilla.training.losses import Loss
from cedilla.training.targets import Target

ITERATIONS = 600
BINARY = Target(kind="classes", columns=("label",), names=("0", "1"))
BATCH_SIZE = 64


class Learner(Protocol):
    """Fits the training rows of one arm and scores all rows."""

    def scores(
        self, use_sequence: bool, features: np.ndarray, seed: int, where: Path
    ) -> np.ndarray:
        """Logits (N,) from the sequences, if used, and locus features (N, F)."""
        ...

    def cost(self) -> tuple[float, float]:
        """About how many seconds an arm takes, measured on a part of it, and gigabytes."""
        ...


class BoostedKmers:
    """Histogram gradient boosting on k-mer counts and locus features.

    Counts of canonical 2-, 3- and 4-mers over the whole sequence, and of 2- and 3-mers in its
    thirds, since what matters may sit at the locus in the middle.
    """

    def __init__(self, sequences: list[str], labels: np.ndarray, train: np.ndarray) -> None:
        self.labels, self.train = labels, train
        self.kmers = kmer_features(sequences)

    def scores(
        self, use_sequence: bool, features: np.ndarray, seed: int, where: Path
    ) -> np.ndarray:
        """Logits (N,); `where` is not needed."""
        # A column without a value has nothing to split on, and would only draw lots.
        features = features[:, ~np.isnan(features).all(axis=0)]
        inputs = np.concatenate([self.kmers, features], 1) if use_sequence else features
        return self.fit(inputs, seed).decision_function(inputs)

    def fit(
        self, inputs: np.ndarray, seed: int, iterations: int | None = None
    ) -> HistGradientBoostingClassifier:
        """The boosting, with settings chosen on dev chromosomes."""
        iterations = iterations or ITERATIONS
        wide = inputs.shape[1] > 50
        model = HistGradientBoostingClassifier(
            max_iter=iterations if wide else iterations // 6,
            learning_rate=0.03,
            max_leaf_nodes=15,
            min_samples_leaf=min(40, 1 + int(self.train.sum()) // 20),
            l2_regularization=5.0,
            max_features=0.2 if wide else 1.0,
            early_stopping=False,
            random_state=seed,
        )
        model.fit(inputs[self.train], self.labels[self.train])
        return model

    def cost(self) -> tuple[float, float]:
        """From a thirtieth of the iterations."""
        clock = time.monotonic()
        self.fit(self.kmers, 0, iterations=ITERATIONS // 30)
        return (time.monotonic() - clock) * 30, self.kmers.nbytes * 4 / 1e9 + 0.5


class FusedNetwork:
    """A model of the zoo with a head, fine-tuned, its locus features fused before the head.

    An arm without sequence is left to boosting: there is nothing to encode. Sequences longer than
    the model's context are refused, by their `names`.
    """

    def __init__(
        self,
        sequences: list[str],
        labels: np.ndarray,
        train: np.ndarray,
        *,
        dev: np.ndarray,
        model: str,
        epochs: int,
        names: list[str],
    ) -> None:
        self.sequences, self.labels, self.train, self.dev = sequences, labels, train, dev
        self.model, self.epochs = model, epochs
        self.tabular = BoostedKmers([], labels, train)
        SequenceData(sequences, labels, Tokenizer.for_model(build(model)), names=names)

    def scores(
        self, use_sequence: bool, features: np.ndarray, seed: int, where: Path
    ) -> np.ndarray:
        """Logits (N,); checkpoints and the epochs' log go to `where`."""
        if not use_sequence:
            return self.tabular.scores(False, features, seed, where)
        trainer, tokenizer = self._trainer(features.shape[1], seed)
        scaled = standardise(features, self.train)

        def data(rows: np.ndarray) -> SequenceData:
            return self._data(rows, tokenizer, scaled)

        trainer.fit(Run(where), data(self.train), data(self.dev))
        everything = data(np.ones(len(self.labels), dtype=bool))
        logits = trainer.logits(everything, "scoring")
        assert isinstance(logits, torch.Tensor)
        scores = logits.double().numpy()
        return np.asarray(scores[:, 1] - scores[:, 0])

    def cost(self) -> tuple[float, float]:
        """From a few training steps; a prediction on both strands costs two thirds of one."""
        trainer, tokenizer = self._trainer(1, seed=0)
        few = np.zeros(len(self.labels), dtype=bool)
        few[np.flatnonzero(self.train)[: 3 * BATCH_SIZE]] = True
        seconds = trainer.seconds_per_row(self._data(few, tokenizer, np.zeros((len(few), 1))))
        steps = self.epochs * self.train.sum() + 2 / 3 * (
            self.epochs * self.dev.sum() + len(self.labels)
        )
        return float(seconds * steps), 1.5

    def _trainer(self, features: int, seed: int) -> tuple[Finetuner, Tokenizer]:
        torch.manual_seed(seed)
        encoder = build(self.model)
        classifier = SequenceClassifier(encoder, 2, features=features)
        trainable = prepare(classifier, "full", Adapter())
        schedule = Schedule(
            epochs=self.epochs,
            batch_size=BATCH_SIZE,
            learning_rate=default_learning_rate(
                "full", trainable.total, baseline=self.model in FROM_SCRATCH
            ),
            patience=0,
            select="auroc",
            seed=seed,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        trainer = Finetuner(
            classifier,
            schedule,
            device,
            target=BINARY,
            criterion=Loss().of(BINARY, self.labels[self.train]),
        )
        return trainer, Tokenizer.for_model(encoder)

    def _data(self, rows: np.ndarray, tokenizer: Tokenizer, features: np.ndarray) -> SequenceData:
        chosen = [self.sequences[i] for i in np.flatnonzero(rows)]
        return SequenceData(chosen, self.labels[rows], tokenizer, features=features[rows])


def kmer_features(sequences: list[str]) -> np.ndarray:
    """Counts of canonical 2-, 3- and 4-mers (N, 178), and of 2- and 3-mers by thirds (N, 126)."""
    whole = [count_kmers(sequences, k) for k in (2, 3, 4)]
    thirds = [
        count_kmers([s[len(s) * i // 3 : len(s) * (i + 1) // 3] for s in sequences], k)
        for k in (2, 3)
        for i in range(3)
    ]
    return np.concatenate([*whole, *thirds], axis=1)


def standardise(features: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features (N, F) in units of the training rows' spread around their mean; NaN stays NaN."""
    known = np.ma.masked_invalid(features[train])
    mean = known.mean(0).filled(0.0)
    spread = known.std(0).filled(1.0)
    return np.asarray((features - mean) / np.where(spread > 0, spread, 1.0))
