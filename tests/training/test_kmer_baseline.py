"""The k-mer baseline: chosen on dev, without a look at the test set."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from cedilla.models.kmers import count_kmers
from cedilla.training import kmer_baseline
from cedilla.training.kmer_baseline import GRID, features, fit_kmers


@pytest.fixture
def sets():
    """Train and dev; class 1 is rich in a 5-mer."""
    rng = np.random.default_rng(0)

    def draw(n):
        labels = np.arange(n) % 2
        bases = ["".join(rng.choice(list("ACGT"), 80)) for _ in labels]
        return [
            s[:40] + "ACGAG" * 4 * y + s[40:] for s, y in zip(bases, labels, strict=True)
        ], labels

    return draw(60), draw(40)


def test_features_are_square_roots_of_counts():
    found = features(["ACGTACGT", "NNNN"], 4)
    np.testing.assert_allclose(found**2, count_kmers(["ACGTACGT", "NNNN"], 4), rtol=1e-6)


def test_it_finds_a_repeated_kmer(sets):
    train, dev = sets
    pipeline, k = fit_kmers(train, dev, seed=0)
    assert matthews_corrcoef(dev[1], pipeline.predict(features(dev[0], k))) > 0.9
    assert k in (4, 5, 6)


def test_the_best_of_the_grid_on_dev_is_chosen(sets, monkeypatch):
    train, dev = sets
    scores = {}
    for k, c in GRID:
        monkeypatch.setattr(kmer_baseline, "GRID", [(k, c)])
        pipeline, found = fit_kmers(train, dev, seed=0)
        assert found == k
        scores[k, c] = matthews_corrcoef(dev[1], pipeline.predict(features(dev[0], k)))
    monkeypatch.setattr(kmer_baseline, "GRID", GRID)
    pipeline, k = fit_kmers(train, dev, seed=0)
    assert (k, pipeline[-1].C) == max(GRID, key=scores.__getitem__)


def test_kmers_are_counted_once_for_each_k(sets, monkeypatch):
    counted = []

    def counting(sequences, k):
        counted.append((len(sequences), k))
        return features(sequences, k)

    monkeypatch.setattr(kmer_baseline, "features", counting)
    fit_kmers(*sets, seed=0)
    assert counted == [(n, k) for k in (4, 5, 6) for n in (60, 40)]


def test_it_is_the_same_every_time(sets):
    train, dev = sets
    models = [fit_kmers(train, dev, seed=0)[0] for _ in range(2)]
    np.testing.assert_array_equal(models[0][-1].coef_, models[1][-1].coef_)
