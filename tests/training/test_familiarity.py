"""What is unlike the training data is flagged; what is like it, hardly ever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.heads import pool
from cedilla.models.zoo import load
from cedilla.training import familiarity
from cedilla.training.batches import SequenceData
from cedilla.training.familiarity import (
    Cloud,
    Familiarity,
    familiarity_of,
    fit_familiarity,
    gc_content,
    kmer_frequencies,
    pooled_states,
)


def sequences(n: int, seed: int, weights=(0.25, 0.25, 0.25, 0.25), length: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(row) for row in rng.choice(list("ACGT"), (n, length), p=weights)]


def data_of(texts: list[str], tokenizer: Tokenizer, long="refuse") -> SequenceData:
    return SequenceData(texts, np.zeros(len(texts), dtype=np.int64), tokenizer, long=long)


@pytest.fixture(scope="module")
def classifier(tiny):
    torch.manual_seed(0)
    return SequenceClassifier(load(tiny), 2)


@pytest.fixture(scope="module")
def tokenizer(classifier):
    return Tokenizer.for_model(classifier.encoder)


def flagged(found, classifier, texts, tokenizer) -> tuple[float, dict]:
    states = pooled_states(classifier, data_of(texts, tokenizer), strands=True, size=64)
    columns = found.columns(states, texts)
    return 1 - columns["familiar"].mean(), columns


def test_sequences_of_another_kind_are_flagged_more_often_than_dev_rows(classifier, tokenizer):
    """Training rows have runs of CG as CpG islands do; a shuffle has the same composition."""
    rng = np.random.default_rng(0)

    def islands(n: int, seed: int) -> list[str]:
        halves = zip(sequences(n, seed, length=30), sequences(n, seed + 9, length=30), strict=True)
        return [a[:10] + "CG" * 10 + b for a, b in halves]

    train, dev = islands(400, 1), islands(200, 2)
    data = {"train": data_of(train, tokenizer), "dev": data_of(dev, tokenizer)}
    sequences_of = {"train": train, "dev": dev}
    found = familiarity_of(classifier, data, sequences_of, strands=True, size=32)
    share, columns = flagged(found, classifier, islands(200, 3), tokenizer)
    assert share < 0.08
    assert found.median == pytest.approx(np.median(columns["distance"]), rel=0.1)
    shuffled = ["".join(rng.permutation(list(text))) for text in dev]
    share, columns = flagged(found, classifier, shuffled, tokenizer)
    assert share > 0.5
    named = {why for row in columns["unlike"] for why in row.split(";")}
    assert {"state", "kmers"} <= named
    assert np.median(columns["distance"]) > 1.2 * found.median
    share, _ = flagged(found, classifier, sequences(200, 5, (0.45, 0.05, 0.05, 0.45)), tokenizer)
    assert share > 0.9


def fitted(texts: list[str]) -> Familiarity:
    """States that are noise around 0, and the given sequences in train and dev."""
    rng = np.random.default_rng(0)
    train, dev = (rng.normal(size=(50, 3)).astype(np.float32) for _ in range(2))
    dev = dev[: len(texts)]
    return fit_familiarity({"train": train, "dev": dev}, {"train": texts, "dev": texts})


def test_length_and_gc_outside_of_the_training_range_are_named():
    found = fitted(["ACGT" * 5, "AACG" * 6])
    assert found.lengths == (20, 24)
    assert found.gc == (0.5, 0.5)
    near = kmer_frequencies(["ACGT" * 5])[0]
    kmers = Cloud(mean=near, precision=np.eye(136, dtype=np.float32), border=0.5)
    states = Cloud(mean=np.zeros(3), precision=np.eye(3, dtype=np.float32), border=9.0)
    found = replace(found, states=states, kmers=kmers)
    points = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [99, 99, 99]], dtype=np.float32)
    columns = found.columns(points, ["ACGT" * 5, "ACGT" * 7, "A" * 22, "G" * 90])
    assert columns["unlike"] == ["", "length", "kmers;gc", "state;kmers;length;gc"]
    assert columns["familiar"].tolist() == [True, False, False, False]
    assert columns["distance"][3] > columns["distance"][2] > 1 >= columns["distance"][0]


def test_a_sequence_of_n_alone_is_unlike_any():
    found = fitted(["ACGT" * 5, "N" * 20, "ACCT" * 5])
    assert found.gc == (0.5, 0.5)
    columns = found.columns(np.zeros((1, 3), dtype=np.float32), ["N" * 20])
    assert "gc" in columns["unlike"][0].split(";")


def test_distance_one_is_the_quantile_of_dev_points():
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(2000, 8)) * np.arange(1, 9)).astype(np.float32)
    dev = (rng.normal(size=(1000, 8)) * np.arange(1, 9)).astype(np.float32)
    found = Cloud.fit(train, dev)
    assert (found.distances(dev) > 1).mean() == pytest.approx(0.01, abs=0.001)
    far = np.zeros((1, 8), dtype=np.float32)
    far[0, 0] = 8  # eight times the spread there, one time that of the last column
    assert found.distances(far)[0] > 1
    assert found.distances(np.roll(far, 7, axis=1))[0] < 1


def test_points_that_are_all_one_are_no_trouble():
    same = np.ones((20, 4), dtype=np.float32)
    found = Cloud.fit(same, same)
    assert np.isfinite(found.distances(same)).all()
    assert (found.distances(same) <= 1).all()


def test_frequencies_are_of_both_strands_and_of_any_length():
    text = "ACGGTTAACCGA"
    rows = kmer_frequencies([text, reverse_complement(text), text + "N" + text, "ACN", "N"])
    assert rows.shape == (5, 136)
    np.testing.assert_allclose(rows[0], rows[1])
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)
    assert rows[:3].sum(axis=1) == pytest.approx(np.ones(3))
    assert not rows[3:].any()


@torch.no_grad()
def test_states_are_means_over_pieces_and_strands(classifier, tokenizer):
    texts = [*sequences(5, 0), *sequences(2, 1, length=400)]
    data = data_of(texts, tokenizer, long="tile")
    found = pooled_states(classifier, data, strands=True, size=3)
    for row, state in enumerate(found):
        parts = []
        for strand in (0, 1):
            for piece in np.flatnonzero(data.owners == row):
                batch = data.batch(np.array([piece]), np.array([strand]))
                hidden = classifier.encoder.encode(batch.ids, batch.mask)
                parts.append(pool(hidden, batch.mask, classifier.pooling)[0].numpy())
        np.testing.assert_allclose(state, np.mean(parts, axis=0), atol=1e-5)
    assert len(parts) > 2


def test_of_many_rows_some_are_drawn(classifier, tokenizer, monkeypatch):
    monkeypatch.setattr(familiarity, "ROWS", 7)
    data = data_of(sequences(30, 0), tokenizer)
    assert pooled_states(classifier, data, strands=False, size=4).shape == (7, 32)


def test_gc_content_is_of_the_known_bases():
    assert gc_content("GCATNNNN") == 0.5
    assert np.isnan(gc_content("NNN"))
