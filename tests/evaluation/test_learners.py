"""Learners: boosting and the fused network see an arm's inputs, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from cedilla.errors import InputError
from cedilla.evaluation import learners
from cedilla.evaluation.learners import BoostedKmers, FusedNetwork, kmer_features, standardise
from cedilla.models import zoo
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.kmers import count_kmers
from cedilla.training.loop import Finetuner

N = 200
TRAIN = np.arange(N) < 140
DEV = (np.arange(N) >= 140) & (np.arange(N) < 170)
NOTHING = np.empty((N, 0))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(learners, "ITERATIONS", 60)
    shape = CNNConfig(hidden_size=8, num_hidden_layers=1)
    monkeypatch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows():
    """Sequences, of which GC content tells the label, and a beta that tells it too."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, N)
    weights = ([0.3, 0.2, 0.2, 0.3], [0.2, 0.3, 0.3, 0.2])
    sequences = ["".join(rng.choice(list("ACGT"), 60, p=weights[y])) for y in labels]
    beta = np.where(labels == 1, 0.2, 0.8) + rng.normal(0, 0.1, N)
    return sequences, labels, beta[:, None]


def accuracy(scores, labels, where):
    return np.mean((scores > 0)[where] == labels[where])


@pytest.fixture
def network(rows):
    sequences, labels, _ = rows

    def make(model="cnn", epochs=2):
        names = [f"loci.csv line {i + 2}" for i in range(N)]
        return FusedNetwork(
            sequences, labels, TRAIN, dev=DEV, model=model, epochs=epochs, names=names
        )

    return make


def test_boosting_learns_from_sequence_and_from_features(rows, tmp_path):
    sequences, labels, beta = rows
    learner = BoostedKmers(sequences, labels, TRAIN)
    unseen = ~TRAIN
    assert accuracy(learner.scores(True, NOTHING, 0, tmp_path), labels, unseen) > 0.65
    assert accuracy(learner.scores(False, beta, 0, tmp_path), labels, unseen) > 0.9
    assert accuracy(learner.scores(True, beta, 0, tmp_path), labels, unseen) > 0.9
    assert learner.scores(True, beta, 0, tmp_path).shape == (N,)


def test_boosting_learns_from_training_rows_alone(rows, tmp_path):
    sequences, labels, beta = rows
    learner = BoostedKmers(sequences, labels, TRAIN)
    other = BoostedKmers(sequences, np.where(TRAIN, labels, 1 - labels), TRAIN)
    for arguments in ((True, beta), (False, beta)):
        np.testing.assert_array_equal(
            learner.scores(*arguments, 0, tmp_path), other.scores(*arguments, 0, tmp_path)
        )


def test_a_missing_feature_is_no_feature_for_boosting(rows, tmp_path):
    sequences, labels, beta = rows
    learner = BoostedKmers(sequences, labels, TRAIN)
    plain = learner.scores(True, NOTHING, 3, tmp_path)
    missing = learner.scores(True, np.full_like(beta, np.nan), 3, tmp_path)
    np.testing.assert_array_equal(plain, missing)
    assert not np.array_equal(plain, learner.scores(True, NOTHING, 4, tmp_path))


def test_kmer_features_are_counts_of_the_whole_and_of_thirds():
    sequences = ["ACGTACGTTTTTCCCCGG", "NNNN", ""]
    found = kmer_features(sequences)
    assert found.shape == (3, 10 + 32 + 136 + 3 * (10 + 32))
    np.testing.assert_array_equal(found[:, 10:42], count_kmers(sequences, 3))
    np.testing.assert_array_equal(found[:1, -32:], count_kmers(["CCCCGG"], 3))
    assert not found[1:].any()


def test_features_are_in_units_of_the_training_spread():
    features = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [np.nan, 5.0, np.nan], [9, 6, 1]])
    found = standardise(features, np.array([True, True, True, False]))
    np.testing.assert_allclose(found[:, 0], [-1, 1, np.nan, 7])
    np.testing.assert_allclose(found[:, 1], [0, 0, 0, 1])  # a constant is left in its own unit
    np.testing.assert_allclose(found[:, 2], [np.nan, np.nan, np.nan, 1])
    assert standardise(np.empty((4, 0)), np.ones(4, dtype=bool)).shape == (4, 0)


def test_the_network_learns_from_beta_and_logs_its_epochs(rows, network, tmp_path):
    _, labels, beta = rows
    beta = beta.copy()
    beta[::10] = np.nan
    learner = network(epochs=12)
    scores = learner.scores(True, beta, 0, tmp_path / "cell")
    measured = ~TRAIN & ~np.isnan(beta[:, 0])
    assert accuracy(scores, labels, measured) > 0.8
    events = (tmp_path / "cell" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(event)["epoch"] for event in events] == list(range(1, 13))
    assert scores.dtype == np.float64


def test_a_missing_feature_is_no_feature_for_the_network(rows, network, tmp_path):
    beta = rows[2]
    plain = network().scores(True, NOTHING, 0, tmp_path / "a")
    missing = network().scores(True, np.full_like(beta, np.nan), 0, tmp_path / "b")
    np.testing.assert_array_equal(plain, missing)
    other = network().scores(True, NOTHING, 1, tmp_path / "c")
    assert pearsonr(plain, other)[0] < 0.9999


def test_a_network_that_was_cut_off_goes_on_where_it_was(rows, network, tmp_path, monkeypatch):
    beta = rows[2]
    whole = network(epochs=3).scores(True, beta, 0, tmp_path / "whole")
    real, epochs = Finetuner._epoch, []

    def killed(self, *args):
        epochs.append(args[0])
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Finetuner, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        network(epochs=3).scores(True, beta, 0, tmp_path / "cut")
    cut = network(epochs=3).scores(True, beta, 0, tmp_path / "cut")
    assert epochs == [0, 1, 2, 2]
    np.testing.assert_array_equal(cut, whole)


def test_without_a_sequence_the_network_leaves_it_to_boosting(rows, network, tmp_path):
    _, labels, beta = rows
    found = network().scores(False, beta, 0, tmp_path)
    expected = BoostedKmers([], labels, TRAIN).scores(False, beta, 0, tmp_path)
    np.testing.assert_array_equal(found, expected)


def test_what_an_arm_costs_is_measured(rows, network):
    sequences, labels, _ = rows
    for learner in (BoostedKmers(sequences, labels, TRAIN), network()):
        seconds, gigabytes = learner.cost()
        assert 0 < seconds < 60
        assert 0 < gigabytes < 4


def test_sequences_beyond_the_context_are_refused_by_their_names(rows, network, monkeypatch):
    shape = CNNConfig(hidden_size=8, num_hidden_layers=1, max_tokens=61)
    monkeypatch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
    network()
    rows[0][7] += "A"
    try:
        with pytest.raises(
            InputError, match=r"loci\.csv line 9: has 62 tokens; the model takes 61"
        ):
            network()
    finally:
        rows[0][7] = rows[0][7][:-1]
