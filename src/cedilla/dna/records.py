"""Records of a stream of sequences, and what is wrong with them, both in constant memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cedilla.dna.tables import LISTED
from cedilla.errors import Problem


class Findings:
    """Problems by kind: the first few of each are kept with their places, the others counted."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Problem]] = {}
        self._counts: dict[str, int] = {}

    def add(self, kind: str, *, where: str, what: str, mend: str) -> None:
        """Note one problem; `kind` groups those that have the same mend."""
        kept = self._kept.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(kept) < LISTED:
            kept.append(Problem(where=where, what=what, mend=mend))

    def problems(self, name: str) -> list[Problem]:
        """All kinds, each with its total where it goes beyond the problems kept.

        `name` is that of the input.
        """
        found = []
        for kind, kept in self._kept.items():
            found += kept
            if (count := self._counts[kind]) > len(kept):
                more = f"the same holds for {count - len(kept):,} more ({count:,} in all)"
                found.append(Problem(where=name, what=more, mend=kept[0].mend))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A sequence as its source has it, not yet cleaned.

    where: file, line and name. line, ends: in FASTA, the number of the header's line and the
    number of bases up to the end of each line that follows it.
    """

    where: str
    id: str
    sequence: str
    line: int = 0
    ends: Sequence[int] = ()

    def place(self, index: int) -> str:
        """The base at a 0-based `index`, as a user finds it: 1-based, with its line."""
        position = f"position {index + 1:,}"
        if not self.ends:
            return position
        return f"{position} (line {self.line + 1 + bisect_right(self.ends, index)})"


# A pass over the input: problems of single records go to the findings, those that make the rest
# unreadable are raised as InputError. Each call begins anew.
Source = Callable[[Findings], Iterator[Record]]
