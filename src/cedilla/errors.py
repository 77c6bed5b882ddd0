"""What is wrong with an input: every problem at once, each with its place and its mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One finding about an input.

    where: file and record, such as ``calls.csv line 812`` or ``calls.csv probe cg00000029``.
    what: the fact, such as ``beta 1.7 is outside [0, 1]``.
    mend: what the user can do about it.
    severity: an ``error`` stops the verb; a ``warning`` is reported and counted; a ``note`` is
        for information.
    """

    where: str
    what: str
    mend: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.mend}" if self.mend else "")


class InputError(ValueError):
    """Raised when an input cannot be used. The command line prints it and exits with code 2."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def one(cls, where: object, what: str, mend: str = "") -> Self:
        """An error of a single problem."""
        return cls([Problem(where=str(where), what=what, mend=mend)])


def stop_on_errors(problems: Iterable[Problem]) -> None:
    """Raise :class:`InputError` with all the errors among `problems`, if there are any."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise InputError(errors)


def unmet(where: str, rules: Iterable[tuple[bool, str, str]]) -> list[Problem]:
    """A problem for each rule (met, what is wrong if it is not, mend) that is not met."""
    return [Problem(where=where, what=what, mend=mend) for met, what, mend in rules if not met]


class MissingData(InputError):  # noqa: N818 - it names what is missing, as NoData would
    """Raised when data is neither in a folder, nor in the cache, nor to be downloaded."""
