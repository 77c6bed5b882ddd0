"""Mixtures of genomes as a user writes them: files, pairs of reference and calls, and lists."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cedilla.dna.genome_store import GenomeStore, open_store
from cedilla.dna.haplotypes import Haplotypes
from cedilla.dna.lines import numbered_lines
from cedilla.errors import InputError, MissingData, Problem

PAIR = "::"  # between a reference and its calls: in no usual path, unlike + or :
LISTS = (".txt", ".tsv")


@dataclass(frozen=True, slots=True)
class Part:
    """A genome, the haplotypes that stand in its place if any, and its weight."""

    store: GenomeStore
    haplotypes: Haplotypes | None
    weight: float


@dataclass(frozen=True, slots=True)
class _Entry:
    """A FASTA file, the calls that go with it, and the weight that a list gives it."""

    path: Path
    calls: Path | None
    weight: float | None


@dataclass(frozen=True, slots=True)
class _Group:
    """What one source stands for."""

    source: str
    entries: list[_Entry]
    weight: float | None


@dataclass(slots=True)
class _Problems:
    wrong: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)

    def stop(self) -> None:
        """Raise all of them; only if nothing else is wrong is it data that is missing."""
        if self.wrong:
            raise InputError([*self.wrong, *self.missing])
        if self.missing:
            raise MissingData(self.missing)


def open_mixture(sources: Sequence[str], data_dir: Path | None) -> list[Part]:
    """The genomes of all sources (:func:`cedilla.training.genomes.read_genomes`)."""
    problems = _Problems()
    named = [f for f in (data_dir, os.environ.get("CEDILLA_DATA")) if f]
    folders = [Path(), *map(Path, named)]
    groups = [_group(source, folders, problems) for source in sources]
    opened = [[_opened(entry, problems) for entry in group.entries] for group in groups]
    problems.stop()
    whole = [[part for part in parts if part] for parts in opened]
    shares = [_shares(g, parts, problems) for g, parts in zip(groups, whole, strict=True)]
    with_weights = {bool(g.weight or all(e.weight for e in g.entries)) for g in groups}
    if len(with_weights) > 1:
        problems.wrong.append(_mixed("genomes"))
    problems.stop()
    return [
        Part(store, haplotypes, weight)
        for parts, weights in zip(whole, shares, strict=True)
        for (store, haplotypes), weight in zip(parts, weights, strict=True)
    ]


def _group(source: str, folders: Sequence[Path], problems: _Problems) -> _Group:
    name, weight = source, ""
    if _locate(source, folders) is None and "=" in source:
        name, _, weight = source.rpartition("=")
    if weight and not _is_weight(weight):
        problems.wrong.append(_no_weight(source, weight, "write PATH=2.5"))
    mend = "name a FASTA file, or its folder in --data-dir"
    paths = _paths(name, name, folders, problems, mend)
    share = float(weight) if _is_weight(weight) else None
    if paths and len(paths) == 1 and paths[0].suffix in LISTS:
        return _Group(source, _read_list(paths[0], problems), share)
    return _Group(source, [_entry(paths, None)] if paths else [], share)


def _read_list(path: Path, problems: _Problems) -> list[_Entry]:
    entries, empty = [], True
    for number, line in numbered_lines(path):
        where = f"{path} line {number}"
        name, _, weight = line.decode("utf-8", "replace").partition("#")[0].strip().partition("\t")
        if not name:
            continue
        empty = False
        weight = weight.strip()
        if weight and not _is_weight(weight):
            problems.wrong.append(_no_weight(where, weight, "write PATH, a tab, and 2.5"))
        mend = "paths are relative to the list; a weight stands after a tab"
        if paths := _paths(name.strip(), where, [path.parent], problems, mend):
            entries.append(_entry(paths, float(weight) if _is_weight(weight) else None))
    if empty:
        mend = "write a path on each line, and a weight after a tab"
        problems.wrong.append(Problem(where=str(path), what="lists no genomes", mend=mend))
    return entries


def _entry(paths: Sequence[Path], weight: float | None) -> _Entry:
    return _Entry(paths[0], paths[1] if len(paths) > 1 else None, weight)


def _paths(
    name: str, where: str, folders: Sequence[Path], problems: _Problems, mend: str
) -> list[Path]:
    """The files of ``PATH`` or ``REFERENCE::CALLS``; none where one of them is not found."""
    parts = name.split(PAIR)
    if len(parts) > 2:
        what, pair = f"has {len(parts) - 1} times {PAIR!r}", f"write reference.fa{PAIR}calls.vcf.gz"
        problems.wrong.append(Problem(where=where, what=what, mend=pair))
        return []
    found = [_locate(part, folders) for part in parts]
    for part, path in zip(parts, found, strict=True):
        if path is None:
            what = "not found" if part == where else f"{part} not found"
            problems.missing.append(Problem(where=where, what=what, mend=mend))
    paths = [path for path in found if path is not None]
    return paths if len(paths) == len(parts) else []


def _locate(name: str, folders: Sequence[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _no_weight(where: str, weight: str, mend: str) -> Problem:
    what = f"{weight!r} is no weight, which is a number above 0"
    return Problem(where=where, what=what, mend=mend)


def _opened(entry: _Entry, problems: _Problems) -> tuple[GenomeStore, Haplotypes | None] | None:
    try:
        store = open_store(entry.path)
        return store, Haplotypes(store, entry.calls) if entry.calls else None
    except InputError as error:
        problems.wrong += error.problems
        return None


def _shares(
    group: _Group, parts: Sequence[tuple[GenomeStore, Haplotypes | None]], problems: _Problems
) -> list[float]:
    """The weights of a source's genomes."""
    given = [entry.weight for entry in group.entries]
    if any(given) and not all(given):
        problems.wrong.append(_mixed(group.source))
    weights = [w or float(part[0].known) for w, part in zip(given, parts, strict=True)]
    scale = 1.0 if group.weight is None else group.weight / sum(weights)
    return [weight * scale for weight in weights]


def _mixed(where: str) -> Problem:
    what = "some genomes have a weight and others none"
    mend = "give every one a weight, or none: then the weights are the numbers of known bases"
    return Problem(where=where, what=what, mend=mend)
