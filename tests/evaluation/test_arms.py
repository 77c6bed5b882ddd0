"""Arms: inputs that differ by one thing, and controls that leak nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cedilla.evaluation.arms import Arm, arms, beta_of, locus_features, pairs

SPLITS = np.repeat(["train", "dev", "test"], (60, 20, 40))
BETA = np.linspace(0, 1, 120)
BETA[::7] = np.nan


def by_name(name: str) -> Arm:
    return next(arm for arm in arms(annotation=True) if arm.name == name)


def rng():
    return np.random.default_rng(0)


def test_arms_with_annotation_stand_only_where_there_is_some():
    every = [
        *("sequence", "beta", "sequence+beta", "sequence+annotation"),
        *("sequence+annotation+beta", "shuffled", "missing"),
    ]
    assert [arm.name for arm in arms(annotation=True)] == every
    assert [arm.name for arm in arms(annotation=False)] == [
        name for name in every if "annotation" not in name
    ]


@pytest.mark.parametrize("annotation", [True, False])
def test_pairs_are_of_arms_and_the_hardest_comparison_decides(annotation):
    names = {arm.name for arm in arms(annotation=annotation)}
    found = pairs(annotation=annotation)
    assert names.issuperset(name for pair in found for name in pair)
    assert len(set(found)) == len(found)
    first = ("sequence+annotation+beta", "sequence+annotation")
    assert found[0] == (first if annotation else ("sequence+beta", "sequence"))
    assert {("shuffled", "sequence"), ("missing", "sequence")} <= set(found)


def test_shuffling_stays_within_a_split():
    shuffled = beta_of(by_name("shuffled"), BETA, SPLITS, rng())
    for split in ("train", "dev", "test"):
        rows = np.isin(SPLITS, split)
        # The same values, missing ones among them, at other rows.
        np.testing.assert_array_equal(np.sort(shuffled[rows]), np.sort(BETA[rows]))
        moved = ~np.isclose(shuffled[rows], BETA[rows], equal_nan=True)
        assert moved.mean() > 0.8
    assert not np.array_equal(
        shuffled, beta_of(by_name("shuffled"), BETA, SPLITS, np.random.default_rng(1)), True
    )


def test_measured_and_missing_betas():
    before = BETA.copy()
    assert np.isnan(beta_of(by_name("missing"), BETA, SPLITS, rng())).all()
    np.testing.assert_array_equal(beta_of(by_name("beta"), BETA, SPLITS, rng()), BETA)
    np.testing.assert_array_equal(BETA, before)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sequence", 0),
        ("beta", 1),
        ("sequence+beta", 1),
        ("sequence+annotation", 2),
        ("sequence+annotation+beta", 3),
        ("shuffled", 1),
        ("missing", 1),
    ],
)
def test_an_arm_sees_what_its_name_says(name, columns):
    annotation = np.stack([np.arange(120.0), -np.arange(120.0)], 1)
    found = locus_features(by_name(name), BETA, annotation, SPLITS, rng())
    assert found.shape == (120, columns)
    if "annotation" in name:
        np.testing.assert_array_equal(found[:, :2], annotation)
    if name.endswith("beta"):
        np.testing.assert_array_equal(found[:, -1], BETA)
    assert by_name(name).sequence == (name != "beta")
