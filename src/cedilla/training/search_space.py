"""The space of a search: settings of ``cedilla finetune`` that stand, and ranges of others.

.. code-block:: yaml

    fixed: {task: prom_core_all, model: mini, method: lora}
    search:
      learning_rate: {low: 1e-4, high: 1e-2, log: true}
      rank: {low: 2, high: 16, step: 2}
      pooling: [mean, mean_max]
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from cedilla.cli import bind, nearest
from cedilla.config import read_yaml
from cedilla.errors import InputError, Problem, stop_on_errors, unmet
from cedilla.training.finetune import finetune
from cedilla.training.plan import check, idle

KEYS = ("fixed", "search")
OF_A_RANGE = ("low", "high", "step", "log")
OF_A_TRIAL = ("out", "resume", "dry_run", "dev_only")
# With other rows, or another measure of them, scores on dev do not compare.
OF_THE_DATA = (
    "train", "dev", "test", "task", "data_dir", "train_on_dev", "sequence", "label", "target",
    "select", "rows", "seed",
)  # fmt: skip
_ABSENT = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both of them included; whole ones where `low` is an int."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def size(self) -> float:
        """How many values there are; infinitely many without a step."""
        if not isinstance(self.low, int) and self.step is None:
            return math.inf
        return round((self.high - self.low) / (self.step or 1)) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Values without an order, as YAML and JSON have them."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many values there are."""
        return len(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Settings by their names: those that every trial has, and those to choose among."""

    fixed: dict[str, Any]
    search: dict[str, Range | Choice]

    @property
    def size(self) -> float:
        """How many points there are."""
        return math.prod(some.size for some in self.search.values())

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial; without those that do nothing with the method of the point."""
        given = self.fixed | dict(point)
        without = idle(defaults() | given) if "method" in self.search else ()
        return {name: value for name, value in given.items() if name not in without}

    def chosen(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Those of :meth:`settings` that are searched."""
        settings = self.settings(point)
        return {name: settings[name] for name in self.search if name in settings}


def read_space(path: Path) -> Space:
    """The space that a YAML file describes.

    Raises :class:`InputError` with all that is wrong: keys, names and types of settings, values
    that no training can have, and ranges that are none.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise InputError.one(path, "has no settings", "write fixed: and search:, each a mapping")
    problems = [
        Problem(where=str(path), what=f"there is no key {key}", mend=nearest(str(key), KEYS))
        for key in document
        if key not in KEYS
    ]
    fixed, search = (_mapping(document, key, path, problems) for key in KEYS)
    if not search:
        mend = "write search: and name: {low: …, high: …} or name: […] below"
        problems.append(Problem(where=str(path), what="has nothing to search", mend=mend))
    problems += _refused(fixed, search, path)
    stands = {
        name: _typed(name, value, f"{path} fixed", problems)
        for name, value in fixed.items()
        if name not in OF_A_TRIAL
    }
    found = {
        name: _read(name, given, f"{path} search", problems)
        for name, given in search.items()
        if name not in OF_A_TRIAL
    }
    space = Space(
        fixed={name: value for name, value in stands.items() if value is not _ABSENT},
        search={name: one for name, one in found.items() if one},
    )
    problems += _impossible(space, str(path))
    stop_on_errors(dict.fromkeys(problems))
    return space


def plain(value: Any) -> Any:
    """A setting as YAML has it."""
    if isinstance(value, Path):
        return str(value)
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _mapping(
    document: Mapping[str, Any], key: str, path: Path, problems: list[Problem]
) -> dict[str, Any]:
    given = document.get(key) or {}
    if not isinstance(given, dict):
        what = f"{key} is no mapping of settings"
        problems.append(Problem(where=str(path), what=what, mend="write name: value pairs"))
        return {}
    return {str(name).replace("-", "_"): value for name, value in given.items()}


def _refused(fixed: Mapping[str, Any], search: Mapping[str, Any], path: Path) -> list[Problem]:
    """Settings that stand where they cannot."""
    found = [
        Problem(where=f"{path} {key}", what=f"{name} is set by the search", mend="remove it")
        for key, some in zip(KEYS, (fixed, search), strict=True)
        for name in some
        if name in OF_A_TRIAL
    ]
    found += [
        Problem(
            where=f"{path} search",
            what=f"with several values of {name}, scores on dev would not compare",
            mend="put one value under fixed",
        )
        for name in search
        if name in OF_THE_DATA
    ]
    found += [
        Problem(where=str(path), what=f"{name} is both fixed and searched", mend="remove one")
        for name in search
        if name in fixed
    ]
    models = [fixed.get("model"), search.get("model")]
    if "kmer" in models or (isinstance(models[1], list) and "kmer" in models[1]):
        what = "the model kmer has no settings to choose"
        found.append(Problem(where=str(path), what=what, mend="leave it out"))
    return found


def _read(name: str, given: Any, where: str, problems: list[Problem]) -> Range | Choice | None:
    """What a setting is searched in; None with a problem."""
    if isinstance(given, dict):
        return _range(name, given, where, problems)
    if not isinstance(given, list) or not given:
        what = f"{name} has no choices" if given == [] else f"{name}: {given!r} is no range"
        mend = "write {low: …, high: …} or a list of choices; a single value belongs under fixed"
        problems.append(Problem(where=where, what=what, mend=mend))
        return None
    values = [_typed(name, value, where, problems) for value in given]
    return None if _ABSENT in values else Choice(values=tuple(values))


def _range(
    name: str, given: Mapping[str, Any], where: str, problems: list[Problem]
) -> Range | None:
    found = [
        Problem(
            where=where, what=f"{name}: a range has no {key}", mend=nearest(str(key), OF_A_RANGE)
        )
        for key in given
        if key not in OF_A_RANGE
    ]
    missing = [key for key in ("low", "high") if given.get(key) is None]
    log = given.get("log", False)
    rules = [
        (not missing, f"{name}: {' and '.join(missing)} missing", "write {low: …, high: …}"),
        (isinstance(log, bool), f"{name}: log is {log!r}", "write true or false"),
    ]
    numbers = {
        key: _typed(name, given[key], where, found)
        for key in ("low", "high", "step")
        if given.get(key) is not None
    }
    found += unmet(where, rules)
    if not found:
        found += unmet(where, _rules(name, log=log, **numbers))
    problems += found
    return None if found else Range(**numbers, log=log)


def _rules(
    name: str, *, low: Any, high: Any, step: Any = None, log: bool
) -> Iterator[tuple[bool, str, str]]:
    """What makes a range (met, what is wrong if it is not, mend)."""
    if not all(type(end) in (int, float) for end in (low, high)):
        yield False, f"{name} is no number, and has no range", "write a list of choices"
        return
    yield low < high, f"{name}: low {low} is not below high {high}", ""
    yield not log or low > 0, f"{name}: low {low} has no logarithm", "start above 0"
    yield not log or step is None, f"{name}: has a step and a logarithm", "choose one of them"
    if step is not None:
        yield step > 0, f"{name}: step {step} is not above 0", ""
        # In decimals, as they are written: 0.3 is three steps of 0.1.
        met = step <= 0 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) == 0
        yield met, f"{name}: steps of {step} from {low} do not end at {high}", "change one of them"


def _typed(name: str, value: Any, where: str, problems: list[Problem]) -> Any:
    """A value in the type of the verb's signature; _ABSENT with a problem."""
    try:
        call: Any = bind("finetune", settings={"out": "trial", name: value}, where=where)
    except InputError as error:
        problems += error.problems
        return _ABSENT
    return plain(call.keywords[name])


def _impossible(space: Space, where: str) -> list[Problem]:
    """Values that have the right type, and that no training can have."""
    values = {
        name: one.values if isinstance(one, Choice) else (one.low, one.high)
        for name, one in space.search.items()
    }
    first = {name: some[0] for name, some in values.items()}
    found = []
    for point in [first, *({**first, name: v} for name, some in values.items() for v in some)]:
        try:
            check(defaults() | space.settings(point))
        except InputError as error:
            found += [replace(problem, where=where) for problem in error.problems]
    return found


def defaults() -> dict[str, Any]:
    """The settings of `cedilla finetune` where none are given."""
    return {name: one.default for name, one in inspect.signature(finetune).parameters.items()}
