"""A first pass over an input: all that is wrong with it, before any model time is spent."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cedilla.dna.alphabet import clean, count_ambiguous, first_forbidden
from cedilla.dna.records import Findings, Record, Source
from cedilla.errors import InputError, Problem
from cedilla.inference.tiles import Tiling, count_tokens, tile_starts

_PIECE = 1 << 20


@dataclass(slots=True, kw_only=True)
class Survey:
    """What an input holds.

    bases, tokens: of the forward strand, without ``<cls>``. tiles, work: how many tiles the model
    reads over all strands, and how many tokens, ``<cls>`` and overlaps included. tiled: records
    longer than the context. longest: bases of the longest record. unknown: bases that are N, those
    read as N included; ambiguous: these, in so many records. digest: of ids and clean sequences.
    """

    records: int = 0
    bases: int = 0
    tokens: int = 0
    tiles: int = 0
    work: int = 0
    tiled: int = 0
    longest: int = 0
    unknown: int = 0
    ambiguous: int = 0
    ambiguous_records: int = 0
    digest: str = ""

    def add(self, sequence: str, ambiguous: int, tiling: Tiling) -> None:
        """Count one clean sequence."""
        tokens = count_tokens(sequence, tiling.k)
        tiles = len(tile_starts(tokens, tiling.capacity, tiling.overlap))
        strands = 2 if tiling.strands == "both" else 1
        read = tokens + tiles if tiles == 1 else tiles * (tiling.capacity + 1)
        self.records += 1
        self.bases += len(sequence)
        self.tokens += tokens
        self.tiles += strands * tiles
        self.work += strands * read
        self.tiled += tiles > 1
        self.longest = max(self.longest, len(sequence))
        self.unknown += sequence.count("N")
        self.ambiguous += ambiguous
        self.ambiguous_records += ambiguous > 0


class Reading:
    """Passes over a source as ids and clean sequences, and the digest of what passed."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and clean sequences so far."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        findings = Findings()
        for record in self._source(findings):
            yield self.take(record)
        if problems := findings.problems(self._name):
            raise InputError(problems)

    def take(self, record: Record) -> tuple[str, str]:
        """One record as id and clean sequence."""
        sequence = clean(record.sequence)
        self._hash.update(f"{record.id}\0".encode())
        for start in range(0, len(sequence), _PIECE):  # a chromosome is not to be held once more
            self._hash.update(sequence[start : start + _PIECE].encode())
        self._hash.update(b"\n")
        return record.id, sequence


def survey(source: Source, name: str, tiling: Tiling, *, known_only: bool = False) -> Survey:
    """Check every record of `source`, and count.

    Ids are remembered as eight bytes each, sequences not at all. With `known_only`, a sequence
    of N alone is refused too.

    Raises :class:`InputError` with all problems of all records: sequences that are empty or have
    characters that are no nucleotide code, ids that are empty or stand twice, and what the
    source itself finds.
    """
    findings, found, reading = Findings(), Survey(), Reading(source, name)
    hashes, records = array("q"), 0
    problems: list[Problem] = []
    try:
        for record in source(findings):
            records += 1
            hashes.append(hash(record.id))
            if not _check(record, findings, known_only=known_only):
                continue
            _, sequence = reading.take(record)
            found.add(sequence, count_ambiguous(record.sequence), tiling)
        _check_twice(source, hashes, findings)
    except InputError as error:
        problems = error.problems
    problems = findings.problems(name) + problems
    if not records and not problems:
        what, mend = "holds no records", "at least one sequence is needed"
        problems.append(Problem(where=name, what=what, mend=mend))
    if problems:
        raise InputError(problems)
    found.digest = reading.digest
    return found


def _check(record: Record, findings: Findings, *, known_only: bool) -> bool:
    where, sequence = record.where, record.sequence
    if not record.id:
        findings.add("id", where=where, what="the id is empty", mend="name the record")
    if not sequence:
        mend = "fill it, or drop the record"
        findings.add("empty", where=where, what="the sequence is empty", mend=mend)
    elif (at := first_forbidden(sequence)) is not None:
        what = f"{sequence[at]!r} at {record.place(at)} is no nucleotide code"
        mend = "use A, C, G, T, N or another IUPAC code"
        findings.add("forbidden", where=where, what=what, mend=mend)
    elif known_only and not clean(sequence).strip("N"):
        mend = "without --skip-n its N tokens have embeddings"
        findings.add("unknown", where=where, what="the sequence has N only", mend=mend)
    else:
        return True
    return False


def _check_twice(source: Source, hashes: array[int], findings: Findings) -> None:
    """Another pass where hashes of ids stand twice, for the ids themselves."""
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_counts=True)
    twice = set(values[counts > 1].tolist())
    if not twice:
        return
    seen: dict[str, str] = {}
    for record in source(Findings()):
        if record.id and hash(record.id) in twice:
            before = seen.setdefault(record.id, record.where)
            if before != record.where:
                what = f"the id {record.id!r} stands already in {before}"
                mend = "make the ids unique; a . in column 4 of BED stands for the place"
                findings.add("twice", where=record.where, what=what, mend=mend)
