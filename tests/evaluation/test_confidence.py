"""Intervals that cover, differences that are paired, blocks that are resampled whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from cedilla.evaluation import confidence
from cedilla.evaluation.confidence import (
    block_bootstrap,
    genomic_blocks,
    paired_block_bootstrap,
    smallest_detectable,
)
from cedilla.metrics.classification import Scorer, classification_metrics

METRICS = ("auroc", "auprc", "mcc")


def simulate(rng, blocks, rows, *, shift, prevalence=0.5, shared=0.0, arms=1):
    """Labels (N,), probabilities (arms, N), blocks (N,): two normal score distributions.

    `shared` is the correlation of rows within a block, in the labels' liability and in scores;
    the arms' scores have a correlation of 0.7 and the same distribution.
    """

    def noise():
        common = np.sqrt(shared) * rng.normal(size=(blocks, 1))
        return common + np.sqrt(1 - shared) * rng.normal(size=(blocks, rows))

    labels = (noise() < norm.ppf(prevalence)).astype(int)
    base = noise()
    scores = [np.sqrt(0.7) * base + np.sqrt(0.3) * noise() for _ in range(arms)]
    p = [norm.cdf(score + shift * (labels - 0.5)).ravel() for score in scores]
    return labels.ravel(), np.array(p), np.repeat(np.arange(blocks), rows)


@pytest.fixture
def data():
    return simulate(np.random.default_rng(3), 40, 5, shift=1.2, shared=0.2, arms=3)


def test_estimates_are_the_metrics_and_lie_inside(data):
    labels, p, blocks = data
    plain = classification_metrics(labels, p[0], threshold=0.4)
    found = block_bootstrap(labels, p[0], blocks, threshold=0.4)
    assert list(found) == list(METRICS)
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(plain[name])
        assert interval.low < interval.estimate < interval.high


def test_seeds_are_averaged_each_at_its_own_threshold(data):
    labels, p, blocks = data
    cuts = [0.3, 0.5, 0.7]
    found = block_bootstrap(labels, p, blocks, threshold=cuts)
    each = [
        classification_metrics(labels, one, threshold=cut) for one, cut in zip(p, cuts, strict=True)
    ]
    for name in METRICS:
        assert found[name].estimate == pytest.approx(np.mean([one[name] for one in each]))


def test_the_same_seed_gives_the_same_interval_in_any_batch_size(data, monkeypatch):
    labels, p, blocks = data
    whole = block_bootstrap(labels, p, blocks, draws=150, seed=5)
    assert block_bootstrap(labels, p, blocks, draws=150, seed=6) != whole
    monkeypatch.setattr(confidence, "BATCH", 7 * len(labels))
    assert block_bootstrap(labels, p, blocks, draws=150, seed=5) == whole


def test_copies_of_a_row_in_one_block_count_once(data):
    labels, p, _ = data
    single = block_bootstrap(labels, p[0], None)
    copied = block_bootstrap(
        np.repeat(labels, 4), np.repeat(p[0], 4), np.repeat(np.arange(len(labels)), 4)
    )
    for name in METRICS:
        assert copied[name].low == pytest.approx(single[name].low)
        assert copied[name].high == pytest.approx(single[name].high)
    naive = block_bootstrap(np.repeat(labels, 4), np.repeat(p[0], 4), None)
    assert naive["auroc"].high - naive["auroc"].low < single["auroc"].high - single["auroc"].low


def test_the_spread_of_accuracy_is_binomial():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    p = np.where(rng.random(400) < 0.7, labels, 1 - labels).astype(float)
    other = np.full(400, 1.0)
    found = paired_block_bootstrap(labels, p, other, None, metrics=("accuracy",), draws=4000)
    gain = (p == labels) * 1.0 - (labels == 1)
    assert found["accuracy"].sd == pytest.approx(gain.std() / np.sqrt(400), rel=0.05)


def test_a_higher_level_is_wider(data):
    labels, p, blocks = data
    narrow = block_bootstrap(labels, p[0], blocks, level=0.5)["mcc"]
    wide = block_bootstrap(labels, p[0], blocks, level=0.99)["mcc"]
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_perfect_score_gets_the_binomial_bound():
    labels = np.tile([0, 1, 1], 20)
    found = block_bootstrap(labels, labels * 1.0, None, metrics=("mcc", "auroc", "recall"))
    for interval in found.values():
        assert (interval.estimate, interval.high) == (1.0, 1.0)
        assert interval.low == pytest.approx(0.025 ** (1 / 20))


def test_perfect_precision_rests_on_the_rows_that_were_called():
    labels = np.repeat([0, 1], 50)
    p = np.where(np.arange(100) >= 97, 0.9, 0.1)
    found = block_bootstrap(labels, p, None, metrics=("precision",))["precision"]
    assert found.estimate == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 3))


def test_calling_nothing_leaves_room_above_zero():
    labels = np.repeat([0, 1], 10)
    found = block_bootstrap(labels, np.full(20, 0.1), None, metrics=("recall", "mcc"))
    assert (found["recall"].estimate, found["recall"].low) == (0.0, 0.0)
    assert found["recall"].high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert (found["mcc"].low, found["mcc"].high) == (0.0, 0.0)


def test_one_class_has_no_interval():
    found = block_bootstrap([1, 1, 1], [0.2, 0.6, 0.9], None, metrics=("auroc", "accuracy"))
    assert np.isnan([found["auroc"].estimate, found["auroc"].low, found["auroc"].high]).all()
    assert np.isnan([found["accuracy"].low, found["accuracy"].high]).all()
    pair = paired_block_bootstrap([1, 1, 1], [0.2, 0.6, 0.9], [0.1, 0.6, 0.9], None)
    assert np.isnan([pair["mcc"].p, pair["auroc"].estimate]).all()


def test_more_than_two_classes_with_and_without_seeds():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 90)
    p = rng.dirichlet(np.ones(3), size=(2, 90))
    both = block_bootstrap(labels, p, None, draws=100)
    one = block_bootstrap(labels, p[0], None, draws=100)
    other = block_bootstrap(labels, p[1], None, draws=100)
    for name in METRICS:
        assert both[name].estimate == pytest.approx((one[name].estimate + other[name].estimate) / 2)
        assert both[name].low < both[name].estimate < both[name].high


def test_a_difference_is_antisymmetric_and_paired(data):
    labels, p, blocks = data
    cuts = {"threshold_a": [0.4, 0.5], "threshold_b": 0.6}
    swapped = {"threshold_a": 0.6, "threshold_b": [0.4, 0.5]}
    there = paired_block_bootstrap(labels, p[:2], p[2], blocks, **cuts)
    back = paired_block_bootstrap(labels, p[2], p[:2], blocks, **swapped)
    for name in METRICS:
        assert there[name].estimate == pytest.approx(-back[name].estimate)
        assert there[name].low == pytest.approx(-back[name].high)
        assert there[name].p == pytest.approx(back[name].p)
    alone = block_bootstrap(labels, p[2], blocks)["auroc"]
    assert there["auroc"].high - there["auroc"].low < alone.high - alone.low


def test_equal_predictions_differ_by_nothing(data):
    labels, p, blocks = data
    for found in paired_block_bootstrap(labels, p[0], p[0], blocks).values():
        assert (found.estimate, found.low, found.high, found.p, found.sd) == (0, 0, 0, 1, 0)


def test_p_and_interval_agree_and_p_is_never_zero(data):
    labels, p, blocks = data
    noise = np.random.default_rng(0).random(len(labels))
    clear = paired_block_bootstrap(labels, p[0], noise, blocks, draws=999)["auroc"]
    assert clear.low > 0
    assert 2 / 1000 <= clear.p < 0.01
    for seed in range(8):
        mixed = 0.8 * p[0] + 0.2 * np.random.default_rng(seed).random(len(labels))
        found = paired_block_bootstrap(labels, p[0], mixed, blocks)["auroc"]
        if abs(found.p - 0.05) > 0.005:
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_blocks_that_cannot_be_resampled():
    with pytest.raises(ValueError, match="one block"):
        block_bootstrap([0, 1], [0.1, 0.9], ["chr8:0", "chr8:0"])
    with pytest.raises(ValueError, match="1 blocks for 2 rows"):
        block_bootstrap([0, 1], [0.1, 0.9], ["chr8:0"])
    with pytest.raises(ValueError, match="labels"):
        paired_block_bootstrap([0, 1], [0.1, 0.9], [0.1, 0.2, 0.3], None)


def test_smallest_detectable_difference():
    assert smallest_detectable(0.01) == pytest.approx(0.028016, abs=1e-6)
    assert smallest_detectable(0.01, power=0.5, alpha=0.05) == pytest.approx(0.0195996, abs=1e-6)


def test_genomic_blocks_are_named_by_their_0_based_start():
    names = genomic_blocks(["chr8", "chr8", "chr8", "chrX"], [0, 1_999_999, 2_000_000, 5_100_000])
    assert list(names) == ["chr8:0", "chr8:0", "chr8:2000000", "chrX:4000000"]
    assert list(genomic_blocks(["7"], [11], size=5)) == ["7:10"]
    for start in (-1, float("nan")):
        with pytest.raises(ValueError, match="start0"):
            genomic_blocks(["chr8"], [start])


SETTINGS = {
    "rows": {"blocks": 300, "rows": 1, "shift": 1.0},
    "near one": {"blocks": 100, "rows": 1, "shift": 3.0},
    "blocks": {"blocks": 60, "rows": 10, "shift": 1.0, "shared": 0.2},
    "few blocks": {"blocks": 20, "rows": 15, "shift": 1.0, "shared": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_95_percent_intervals_cover_the_truth(setting):
    shape = SETTINGS[setting]
    rng = np.random.default_rng(1)
    labels, p, _ = simulate(rng, **(shape | {"blocks": 1_000_000 // shape["rows"]}))
    truth = Scorer(labels, p[0], metrics=METRICS)()
    covered = dict.fromkeys(METRICS, 0)
    # The standard error of a coverage of 95 % in 3,000 simulations is 0.4 %.
    for _ in range(3000):
        labels, p, blocks = simulate(rng, **shape)
        for name, found in block_bootstrap(labels, p[0], blocks, draws=300).items():
            covered[name] += int(found.low <= truth[name][0] <= found.high)
    print(setting, covered)
    assert all(0.93 <= count / 3000 <= 0.97 for count in covered.values()), covered


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["rows", "blocks", "few blocks"])
def test_equal_models_are_told_apart_one_time_in_twenty(setting):
    rng = np.random.default_rng(2)
    covered, rejected = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0)
    for _ in range(1000):
        labels, p, blocks = simulate(rng, **SETTINGS[setting], arms=2)
        for name, found in paired_block_bootstrap(labels, *p, blocks, draws=400).items():
            covered[name] += found.low <= 0 <= found.high
            rejected[name] += found.p <= 0.05
    print(setting, covered, rejected)
    assert all(930 <= count <= 970 for count in covered.values()), covered
    assert all(30 <= count <= 70 for count in rejected.values()), rejected
