"""What is tried next: the same for the same seed and history, nothing twice, and no copies."""

from __future__ import annotations

import math

import pytest

from cedilla.training.search_space import Choice, Range, Space
from cedilla.training.suggestions import Trial, best_of, next_trial

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

WIDE = Space(
    fixed={},
    search={
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "epochs": Range(low=1, high=9, step=2),
        "targets": Choice(values=(["query"], ["query", "value"], None)),
    },
)
SMALL = Space(
    fixed={}, search={"balanced": Choice(values=(True, False)), "epochs": Range(low=1, high=4)}
)


def score(settings) -> float:
    """Best at a rate of 1e-3 and 5 epochs."""
    return -abs(math.log10(settings["learning_rate"]) + 3) - abs(settings["epochs"] - 5) / 4


def searched(space, n, *, value=lambda settings: 0.0, seed=3, done=()) -> list[Trial]:
    """A search in which some trials are pruned, and some fail."""
    trials = list(done)
    for number in range(len(trials) + 1, n + 1):
        settings, _ = next_trial(space, trials, number=number, direction="higher", seed=seed)
        state = "failed" if number % 7 == 0 else "pruned" if number % 5 == 0 else "complete"
        found = value(settings)
        trials.append(
            Trial(
                number=number,
                settings=settings,
                state=state,
                scores={} if state == "failed" else {1: found},
                score=found if state == "complete" else None,
            )
        )
    return trials


def test_suggestions_follow_from_seed_and_history_alone():
    whole = searched(WIDE, 16, value=score)
    assert searched(WIDE, 16, value=score) == whole
    assert searched(WIDE, 16, value=score, done=whole[:11]) == whole
    assert searched(WIDE, 3, value=score, seed=4) != whole[:3]


def test_suggestions_lie_in_the_space_and_move_to_what_is_better():
    trials = searched(WIDE, 30, value=score)
    for trial in trials:
        assert 1e-4 <= trial.settings["learning_rate"] <= 1e-2
        assert trial.settings["epochs"] in (1, 3, 5, 7, 9)
        assert trial.settings["targets"] in WIDE.search["targets"].values
    values = [score(trial.settings) for trial in trials]
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10
    assert best_of(trials, "higher").score == max(t.score for t in trials if t.score is not None)
    assert best_of(trials, "lower").score == min(t.score for t in trials if t.score is not None)


def test_no_point_is_tried_twice_while_there_are_others():
    tried = [tuple(trial.settings.values()) for trial in searched(SMALL, 8)]
    assert len(set(tried)) == SMALL.size == 8


def test_there_is_no_best_without_a_complete_trial():
    assert best_of([], "higher") is None
    assert best_of([Trial(number=1, settings={}, state="failed", scores={})], "lower") is None
