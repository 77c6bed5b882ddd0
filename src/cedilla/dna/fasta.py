"""FASTA as a stream of records, one at a time in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cedilla.dna.lines import numbered_lines
from cedilla.dna.records import Findings, Record
from cedilla.errors import InputError


def read_fasta(path: Path, findings: Findings) -> Iterator[Record]:
    """The records of a FASTA file, plain, gzip or bgzip; the id is the header's first word.

    Raises :class:`InputError` where the file breaks off, with line and record.
    """
    draft: _Draft | None = None
    try:
        for number, line in numbered_lines(path):
            if line.startswith(b">"):
                if draft is not None:
                    yield draft.finished()
                draft = _Draft(path, number, _id(path, number, line, findings))
            elif draft is not None:
                draft.bases += line.strip()
                draft.ends.append(len(draft.bases))
    except InputError as error:
        if draft is None:
            raise
        (problem,) = error.problems
        where = f"{problem.where} (record {draft.id})"
        raise InputError([replace(problem, where=where)]) from None
    if draft is not None:
        yield draft.finished()


@dataclass(slots=True)
class _Draft:
    """A record of which more lines may come."""

    path: Path
    line: int
    id: str
    bases: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))

    def finished(self) -> Record:
        # A byte beyond ASCII becomes a letter that is no nucleotide code.
        sequence = self.bases.decode("latin-1")
        self.bases.clear()  # a chromosome is not to be held twice
        where = f"{self.path} line {self.line}" + (f" (record {self.id})" if self.id else "")
        return Record(where=where, id=self.id, sequence=sequence, line=self.line, ends=self.ends)


def _id(path: Path, number: int, line: bytes, findings: Findings) -> str:
    words = line[1:].split(maxsplit=1)
    try:
        return words[0].decode("utf-8") if words else ""
    except UnicodeDecodeError:
        where = f"{path} line {number}"
        findings.add("utf-8", where=where, what="is not UTF-8 text", mend="save it as UTF-8")
        return ""
