"""Sequences with ``<mask>`` in them, each of which stands for one k-mer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cedilla.dna.alphabet import clean, count_ambiguous, first_forbidden, reverse_complement
from cedilla.dna.inputs import recognise
from cedilla.dna.records import Findings, Record, Source
from cedilla.dna.tables import read_table
from cedilla.errors import InputError, Problem

MASK_TEXT = "<mask>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """A clean sequence, of A, C, G, T, N and ``<mask>``.

    where: file and record. ambiguous: IUPAC codes that became N.
    """

    where: str
    id: str
    text: str
    ambiguous: int = 0

    @property
    def masks(self) -> int:
        """How many masks it has."""
        return self.text.count(MASK_TEXT)

    def positions1(self, k: int) -> Iterator[int]:
        """The first base of each mask, from 1, where every mask is k bases long."""
        position = 1
        for piece in self.text.split(MASK_TEXT)[:-1]:
            position += len(piece)
            yield position
            position += k

    def other_strand(self) -> str:
        """The reverse complement, in which the masks stand in reverse order."""
        pieces = self.text.split(MASK_TEXT)
        return MASK_TEXT.join(reverse_complement(piece) for piece in reversed(pieces))


def is_sequence(text: str) -> bool:
    """Whether `text` is meant as DNA, and not as the name of a file."""
    return MASK_TEXT in text or not (set(text.upper()) - set("ACGTUN") or os.path.exists(text))


def kmer_start0(sequence: str, index0: int, k: int) -> int | None:
    """Where the k-mer begins that the tokenizer reads the base at `index0` in.

    None for N, for the bases that are left over behind the last whole k-mer of a run, and outside.
    """
    if not 0 <= index0 < len(sequence):
        return None
    begin = sequence.rfind("N", 0, index0 + 1) + 1
    end = sequence.find("N", index0) % (len(sequence) + 1)
    start = begin + (index0 - begin) // k * k
    return start if begin <= index0 and start + k <= end else None


def mask_bases(sequence: str, starts0: Sequence[int], k: int) -> str:
    """`sequence` with the k-mers that begin at `starts0` masked."""
    for start in sorted(set(starts0), reverse=True):
        sequence = sequence[:start] + MASK_TEXT + sequence[start + k :]
    return sequence


def mask_positions(
    texts: Sequence[Masked], positions1: Sequence[Sequence[int]], k: int
) -> list[Masked]:
    """Mask in each of `texts` the k-mers around its positions, from 1.

    Raises :class:`InputError` with all positions that are in no whole k-mer, and all texts that
    have no position, or have a mask already.
    """
    findings = Findings()
    found = []
    for text, positions in zip(texts, positions1, strict=True):
        starts = [kmer_start0(text.text, position - 1, k) for position in positions]
        if text.masks:
            mend = "give one of the two"
            findings.add("both", where=text.where, what="has <mask> and positions", mend=mend)
        elif not positions:
            mend = "fill it, or drop the record"
            findings.add("none", where=text.where, what="has no position to mask", mend=mend)
        elif None in starts:
            what = f"base {positions[starts.index(None)]:,} is in no whole {k}-mer"
            mend = "bases count from 1; N and the bases behind a run's last k-mer cannot be masked"
            findings.add("place", where=text.where, what=what, mend=mend)
        else:
            known = [start for start in starts if start is not None]
            found.append(replace(text, text=mask_bases(text.text, known, k)))
    _stop(findings)
    return found


def refuse(
    texts: Sequence[Masked], wrong: Callable[[Masked], bool], *, what: str, mend: str
) -> None:
    """Raise :class:`InputError` with all of `texts` that are `wrong`."""
    findings = Findings()
    for text in filter(wrong, texts):
        findings.add("", where=text.where, what=what, mend=mend)
    _stop(findings)


def _stop(findings: Findings, name: str = "sequences") -> None:
    if problems := findings.problems(name):
        raise InputError(problems)


def read_positions(position: Sequence[str], input: Any, count: int) -> list[list[int]]:
    """The bases to mask in each of `count` records: the same in all, or a column of the table.

    Raises :class:`InputError` for a column that is not there, and for all rows in which something
    else stands than whole numbers.
    """
    words = [str(word).strip() for word in position]
    if all(word.isdecimal() for word in words):
        return [[int(word) for word in words]] * count
    where = f"--position {','.join(words)}"
    if len(words) > 1 or not isinstance(input, str | Path):
        mend = "such as 12,40, or a column of a table"
        raise InputError.one(where, "is neither whole numbers nor a column", mend)
    if recognise(Path(input)) not in ("table", "Parquet"):
        raise InputError.one(where, "names a column, and the input is no table", "give numbers")
    frame = read_table(input, text=words)
    if words[0] not in frame:
        mend = "its columns: " + ", ".join(map(str, frame.columns[:12]))
        raise InputError.one(input, f"has no column {words[0]!r}", mend)
    return _positions_of_rows(frame[words[0]], f"{input} {frame.attrs['record']}")


def _positions_of_rows(values: pd.Series, where: str) -> list[list[int]]:
    findings = Findings()
    found = []
    for number, value in values.items():
        many = value if isinstance(value, list | np.ndarray) else [value]
        text = " ".join(str(one) for one in many if not pd.isna(one))
        # Whole numbers between missing ones come as floats.
        words = [word.removesuffix(".0") for word in re.findall(r"[^\s,;]+", text)]
        if not all(word.isdecimal() for word in words):
            mend = "whole numbers such as 12 or 12 40"
            what = f"{text!r} are no positions"
            findings.add("", where=f"{where} {number}", what=what, mend=mend)
        found.append([int(word) for word in words if word.isdecimal()])
    _stop(findings)
    return found


def read_masked(source: Source, name: str) -> list[Masked]:
    """All records of `source`, checked.

    Raises :class:`InputError` with every problem: sequences that are empty, of N alone, or with
    characters that are neither nucleotide codes nor ``<mask>``; ids that are empty or stand twice.
    """
    findings = Findings()
    found: list[Masked] = []
    seen: dict[str, str] = {}
    raised: list[Problem] = []
    try:
        for record in source(findings):
            _check_id(record, seen, findings)
            if (text := _checked(record, findings)) is not None:
                ambiguous = count_ambiguous(record.sequence.replace(MASK_TEXT, ""))
                found.append(
                    Masked(where=record.where, id=record.id, text=text, ambiguous=ambiguous)
                )
    except InputError as error:
        raised = error.problems
    if problems := findings.problems(name) + raised:
        raise InputError(problems)
    if not found:
        raise InputError.one(name, "holds no records", "at least one sequence is needed")
    return found


def _check_id(record: Record, seen: dict[str, str], findings: Findings) -> None:
    if not record.id:
        findings.add("id", where=record.where, what="the id is empty", mend="name the record")
    elif record.id in seen:
        what = f"the id {record.id!r} stands already in {seen[record.id]}"
        findings.add("twice", where=record.where, what=what, mend="make the ids unique")
    else:
        seen[record.id] = record.where


def _checked(record: Record, findings: Findings) -> str | None:
    """The clean text, if it is one."""
    where, start, pieces = record.where, 0, []
    if not record.sequence:
        mend = "fill it, or drop the record"
        findings.add("empty", where=where, what="the sequence is empty", mend=mend)
        return None
    for piece in record.sequence.split(MASK_TEXT):
        if (at := first_forbidden(piece)) is not None:
            what = f"{piece[at]!r} at {record.place(start + at)} is no nucleotide code"
            mend = "use A, C, G, T, N or another IUPAC code, and write masks as <mask>"
            findings.add("forbidden", where=where, what=what, mend=mend)
            return None
        pieces.append(clean(piece))
        start += len(piece) + len(MASK_TEXT)
    text = MASK_TEXT.join(pieces)
    if not text.strip("N"):
        mend = "drop the record"
        findings.add("unknown", where=where, what="the sequence has N only", mend=mend)
        return None
    return text
