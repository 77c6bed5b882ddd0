"""What to try next, by Optuna: a function of the trials that are done, the space and the seed.

A study is made anew from the finished trials for each next one, with a sampler seeded by the
search's seed and the trial's number. So a search that was interrupted goes on with the suggestions
that it would have made.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cedilla.errors import InputError
from cedilla.training.search_space import Choice, Range, Space

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed"]
Direction = Literal["higher", "lower"]
AT_LEAST = 5  # complete trials before any is pruned
FIRST_PRUNED = 2  # a first epoch, in which the rate still rises, says little


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A finished trial; `scores` on dev by epoch, where there is one, and of the epoch kept."""

    number: int
    settings: dict[str, Any]
    state: State
    scores: dict[int, float]
    score: float | None = None
    seconds: float = 0.0
    reason: str = ""


def refuse_without_optuna() -> None:
    """Raise :class:`InputError` where the extra is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError.one("cedilla tune", "optuna not installed", "pip install 'cedilla[tune]'")


def next_trial(
    space: Space, done: Sequence[Trial], *, number: int, direction: Direction, seed: int
) -> tuple[dict[str, Any], optuna.trial.Trial]:
    """The settings of trial `number`, and Optuna's side of it, which reports go to.

    No point is tried twice, as long as there are others.
    """
    import optuna

    drawn = np.random.SeedSequence([seed, number]).generate_state(2)
    first, other = (int(state) for state in drawn)
    asked = _ask(space, done, direction, optuna.samplers.TPESampler(seed=first))
    if _settings(space, asked.params) in [trial.settings for trial in done]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.BruteForceSampler(seed=other)
        asked = _ask(space, done, direction, sampler)
    return _settings(space, asked.params), asked


def best_of(done: Sequence[Trial], direction: Direction) -> Trial | None:
    """The first complete trial with the best score; None where none is complete."""
    sign = 1 if direction == "higher" else -1
    complete = [trial for trial in done if trial.state == "complete"]
    return max(complete, key=lambda trial: sign * (trial.score or 0.0), default=None)


def _ask(
    space: Space,
    done: Sequence[Trial],
    direction: Direction,
    sampler: optuna.samplers.BaseSampler,
) -> optuna.trial.Trial:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(one) for name, one in space.search.items()}
    study = optuna.create_study(
        direction="maximize" if direction == "higher" else "minimize",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(AT_LEAST, FIRST_PRUNED),
    )
    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(
                state=states[trial.state],
                value=trial.score if trial.state == "complete" else None,
                params=_parameters(space, trial.settings),
                distributions=distributions,
                intermediate_values=trial.scores,
            )
        )
    return study.ask(distributions)


def _distribution(one: Range | Choice) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(one, Choice):
        # By place, since Optuna takes no lists as choices.
        return CategoricalDistribution(range(len(one.values)))
    if isinstance(one.low, int) and isinstance(one.high, int):
        return IntDistribution(one.low, one.high, log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


def _settings(space: Space, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: one.values[parameters[name]] if isinstance(one, Choice) else parameters[name]
        for name, one in space.search.items()
    }


def _parameters(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: one.values.index(settings[name]) if isinstance(one, Choice) else settings[name]
        for name, one in space.search.items()
    }
