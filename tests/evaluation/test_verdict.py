"""The verdict says no more than the intervals and the controls carry."""

from __future__ import annotations

import pytest

from cedilla.evaluation.verdict import verdict

ARMS = {
    "sequence": {"auroc": 0.72},
    "sequence+beta": {"auroc": 0.84},
    "sequence+annotation": {"auroc": 0.77},
    "sequence+annotation+beta": {"auroc": 0.85},
    "shuffled": {"auroc": 0.71},
    "missing": {"auroc": 0.72},
}


def difference(arm, against, low, high, metric="auroc"):
    return {
        "arm": arm,
        "against": against,
        "metric": metric,
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "p": 0.013,
        "smallest_detectable": 0.031,
    }


def judged(low, high, shuffled=(-0.02, 0.01), missing=(0.0, 0.0), arms=ARMS, **settings):
    differences = [
        difference("sequence+beta", "sequence", -1, 1, metric="mcc"),
        difference("sequence+beta", "sequence", low, high),
        difference("shuffled", "sequence", *shuffled),
        difference("missing", "sequence", *missing),
        difference("sequence+beta", "shuffled", 0.1, 0.2),
    ]
    return verdict(differences, arms, label="H3K4me3", limits=["few rows"], **settings)


@pytest.mark.parametrize(
    ("low", "high", "call"),
    [
        (0.01, 0.10, "adds"),
        (-0.10, -0.01, "hurts"),
        (-0.01, 0.10, "adds nothing measurable"),
        (0.0, 0.10, "adds nothing measurable"),
        (-0.10, 0.0, "adds nothing measurable"),
    ],
)
def test_the_interval_decides(low, high, call):
    found = judged(low, high)
    assert found["call"] == call
    assert f"methylation {call} " in found["sentence"]
    assert "AUROC 0.840 against 0.720" in found["sentence"]
    assert "p = 0.013" in found["sentence"]
    assert found["limits"] == ["few rows"]


def test_no_gain_names_what_would_have_been_found():
    assert "difference of 0.031 would" in judged(-0.01, 0.10)["sentence"]
    assert "0.031" not in judged(0.01, 0.10)["sentence"]


@pytest.mark.parametrize("control", ["shuffled", "missing"])
def test_a_control_that_gains_half_as_much_refutes(control):
    found = judged(0.04, 0.12, **{control: (0.03, 0.06)})
    assert found["call"] == "adds nothing measurable"
    assert f"The control with {control} methylation gained too" in found["sentence"]
    # A third of the gain, or one whose interval holds zero, does not.
    assert judged(0.04, 0.12, **{control: (0.01, 0.04)})["call"] == "adds"
    assert judged(0.04, 0.12, **{control: (-0.01, 0.2)})["call"] == "adds"


def test_where_there_is_no_gain_none_is_refuted():
    found = judged(-0.02, 0.02, shuffled=(0.01, 0.03))
    assert "does not count" not in found["sentence"]
    assert "Shuffled methylation moved the result" in found["sentence"]
    assert judged(-0.05, -0.02, shuffled=(0.01, 0.03))["call"] == "hurts"


def test_controls_are_said():
    sentence = judged(0.01, 0.10)["sentence"]
    assert "Shuffled methylation brought nothing (" in sentence
    assert "Missing methylation changed nothing at all." in sentence
    assert "moved the result" in judged(0.1, 0.2, shuffled=(-0.03, -0.01))["sentence"]


def test_the_first_pair_is_the_one_that_is_judged():
    differences = [
        difference("sequence+annotation+beta", "sequence+annotation", -0.01, 0.01),
        difference("sequence+beta", "sequence", 0.1, 0.2),
    ]
    found = verdict(differences, ARMS, label="x", limits=[])
    assert found["call"] == "adds nothing measurable"
    assert "beyond sequence and annotation: AUROC 0.850 against 0.770" in found["sentence"]


def test_a_perfect_model_leaves_nothing_to_gain():
    arms = ARMS | {"sequence": {"auroc": 1.0}, "sequence+beta": {"auroc": 1.0}}
    sentence = judged(-0.001, 0.001, arms=arms)["sentence"]
    assert "nothing is left to gain" in sentence
    assert "would have been found" not in sentence


def test_the_scope_ends_the_sentence():
    sentence = judged(0.01, 0.1, scope="promoter-proximal probes")["sentence"]
    assert sentence.endswith("This speaks for promoter-proximal probes only.")
