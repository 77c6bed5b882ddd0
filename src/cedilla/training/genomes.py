"""Random windows of genomes as token ids, for masked-language-model pre-training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysam
import torch

from cedilla.dna import alphabet
from cedilla.dna.tables import listed
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer
from cedilla.errors import InputError, MissingData, Problem
from cedilla.progress import console

_N = alphabet.BASES.index("N")


@dataclass(frozen=True, slots=True)
class Genome:
    """The contigs of a FASTA file, as ``uint8`` codes, and its weight (:class:`WindowSampler`)."""

    name: str
    contigs: tuple[np.ndarray, ...]
    weight: float

    @property
    def known(self) -> int:
        """Bases that are not N."""
        return sum(int((contig != _N).sum()) for contig in self.contigs)


def find_genome(source: str, data_dir: Path | None = None) -> tuple[Path, float | None]:
    """The file and the weight of ``PATH`` or ``PATH=WEIGHT``.

    A relative path is looked for here, in `data_dir`, and in the folder that the environment
    variable ``CEDILLA_DATA`` names. Raises :class:`InputError` for a weight that is no number
    above 0, else :class:`MissingData` for a file that is nowhere.
    """
    name, _, weight = source.partition("=")
    folders = [Path(), *(Path(f) for f in (data_dir, os.environ.get("CEDILLA_DATA")) if f)]
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    problems = []
    if weight and not _is_weight(weight):
        what = f"{weight!r} is no weight, which is a number above 0"
        problems.append(Problem(where=source, what=what, mend="write PATH=2.5"))
    if path is None:
        mend = "name a FASTA file, or its folder in --data-dir"
        missing = Problem(where=name, what="not found", mend=mend)
        raise InputError([*problems, missing]) if problems else MissingData([missing])
    if problems:
        raise InputError(problems)
    return path, float(weight) if weight else None


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def read_genomes(sources: Sequence[str], data_dir: Path | None = None) -> list[Genome]:
    """Read FASTA files (plain or gzip), given as ``PATH`` or ``PATH=WEIGHT``.

    Without a weight, a genome's weight is the number of its known bases. IUPAC codes for several
    bases are read as N; a note on standard error counts them.

    Raises
    ------
    InputError
        With the problems of all sources: files that are absent, cut off, without bases or with
        letters that are no nucleotide codes, and weights that are no numbers above 0. A
        :class:`MissingData` where nothing is wrong but absent files.
    """
    genomes, errors = [], []
    for source in sources:
        try:
            path, weight = find_genome(source, data_dir)
            genome = _read(path)
        except InputError as error:
            errors.append(error)
            continue
        share = float(genome.known) if weight is None else weight
        genomes.append(Genome(genome.name, genome.contigs, share))
    if errors:
        only_missing = all(isinstance(error, MissingData) for error in errors)
        kind = MissingData if only_missing else InputError
        raise kind(problem for error in errors for problem in error.problems)
    return genomes


def _read(path: Path) -> Genome:
    """The contigs of one file, its weight left open at 0."""
    contigs: list[np.ndarray] = []
    forbidden: list[tuple[str, str, int]] = []
    ambiguous: dict[str, int] = {}
    try:
        with pysam.FastxFile(str(path)) as file:
            for record in file:
                sequence, name = record.sequence or "", f"record {record.name}"
                if (at := alphabet.first_forbidden(sequence)) is not None:
                    forbidden.append((name, sequence[at], at + 1))
                    continue
                if count := alphabet.count_ambiguous(sequence):
                    ambiguous[name] = count
                contigs.append(alphabet.encode(alphabet.clean(sequence)))
    except (OSError, ValueError):
        mend = "copy it again; `gzip -t` tests one that ends in .gz"
        raise InputError.one(path, "is cut off, damaged or no FASTA file", mend) from None
    if forbidden:
        raise InputError(_forbidden(path, forbidden))
    genome = Genome(path.name, tuple(contigs), 0.0)
    if genome.known == 0:
        raise InputError.one(path, "holds no bases", "is it a FASTA file?")
    if ambiguous:
        _note_ambiguous(path, ambiguous)
    return genome


def _forbidden(path: Path, found: Sequence[tuple[str, str, int]]) -> list[Problem]:
    """The first forbidden letter of each record: its name, the letter, its 1-based position."""
    return listed(
        path,
        [name for name, _, _ in found],
        lambda k: f"{found[k][1]!r} at position {found[k][2]:,} is no nucleotide code",
        "use A, C, G, T, N or another IUPAC code",
    )


def _note_ambiguous(path: Path, counts: Mapping[str, int]) -> None:
    total, first = sum(counts.values()), next(iter(counts))
    console.print(
        f"note: {path}: {total:,} IUPAC codes such as R or Y in {len(counts):,} records (the "
        f"first in {first}) are read as N",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def split(genomes: Sequence[Genome], share: float) -> tuple[list[Genome], list[Genome]]:
    """Cut the last `share` of every contig off for validation."""
    parts: tuple[list[Genome], list[Genome]] = ([], [])
    for genome in genomes:
        cuts = [round(len(contig) * (1 - share)) for contig in genome.contigs]
        for part, contigs in zip(
            parts,
            (
                tuple(c[:cut] for c, cut in zip(genome.contigs, cuts, strict=True)),
                tuple(c[cut:] for c, cut in zip(genome.contigs, cuts, strict=True)),
            ),
            strict=True,
        ):
            part.append(Genome(genome.name, contigs, genome.weight))
    return parts


class WindowSampler:
    """Draws windows without N, on either strand, from genomes by weight.

    A weight counts per window tried: each try takes a genome in proportion to its weight, one of
    its contigs by length, and a start. A window with an N is dropped, and the next try takes a
    genome anew; so a genome rich in N has a smaller share of the windows than of the weights.
    """

    def __init__(self, genomes: Sequence[Genome], *, length: int, part: str = "contig") -> None:
        self.length = length
        self.contigs = [c for g in genomes for c in g.contigs if len(c) >= length]
        if not self.contigs:
            mend = "lower --tokens, or change --validation-share"
            raise InputError.one("genomes", f"no {part} has {length:,} bases", mend)
        weights = np.concatenate(
            [
                g.weight * len(c) / total * np.ones(1)
                for g in genomes
                for total in [sum(map(len, g.contigs))]
                for c in g.contigs
                if len(c) >= length
            ]
        )
        self.weights = weights / weights.sum()

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n windows (n, length) of codes, from tries that gave no N."""
        windows = np.empty((n, self.length), dtype=np.uint8)
        filled = 0
        for _ in range(10_000):
            contig = self.contigs[rng.choice(len(self.contigs), p=self.weights)]
            start = rng.integers(0, len(contig) - self.length + 1)
            window = contig[start : start + self.length]
            if (window == _N).any():
                continue
            windows[filled] = (3 - window[::-1]) if rng.random() < 0.5 else window
            filled += 1
            if filled == n:
                return windows
        raise InputError.one("genomes", "hardly a window is free of N", "lower --tokens")


def tokens_of(windows: np.ndarray, tokenizer: Tokenizer) -> torch.Tensor:
    """Windows (B, k·n) of codes as token ids (B, 1 + n), ``<cls>`` first."""
    B, length = windows.shape
    letters = np.frombuffer(alphabet.BASES.encode(), dtype=np.uint8)[windows]
    ids = tokenizer.kmer_ids(letters.reshape(B, length // tokenizer.k, tokenizer.k))
    return torch.from_numpy(np.pad(ids.astype(np.int64), ((0, 0), (1, 0)), constant_values=CLS))


def mask_tokens(
    ids: torch.Tensor, tokenizer: Tokenizer, rng: np.random.Generator, *, share: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Corrupt `share` of the tokens: 80 % to ``<mask>``, 10 % to another k-mer, 10 % kept.

    Returns
    -------
    corrupted ids (B, L), chosen (B, L) bool, and masked (B, L) bool: those of the chosen that
    became ``<mask>``, on which alone a loss can be compared between models.
    """
    chosen = torch.from_numpy(rng.random(ids.shape) < share)
    chosen[:, 0] = False
    fate = torch.from_numpy(rng.random(ids.shape))
    masked = chosen & (fate < 0.8)
    random = chosen & (fate >= 0.8) & (fate < 0.9)
    first, count = len(tokenizer.special), 4**tokenizer.k
    # A shift of at least one and less than all never gives the token itself.
    shift = torch.from_numpy(rng.integers(1, count, ids.shape))
    corrupted = ids.masked_fill(masked, MASK)
    corrupted = torch.where(random, (ids - first + shift) % count + first, corrupted)
    return corrupted, chosen, masked
