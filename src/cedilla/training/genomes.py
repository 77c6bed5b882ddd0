"""Random windows of a mixture of genomes, for masked-language-model pre-training."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cedilla.dna.genome_store import CODE, SOFT, GenomeStore
from cedilla.dna.haplotypes import Haplotypes
from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.progress import console
from cedilla.training.mixture import open_mixture

_REGION = re.compile(r"(.+):([\d,]+)-([\d,]*)")


@dataclass(frozen=True, slots=True)
class Genome:
    """A genome of a mixture, or the part of it that is trained on or held out.

    weight: its share of the windows, relative to the other genomes.
    runs: int64 (R, 2), intervals of ``store.bases`` without N from which windows may be drawn.
    haplotypes: the people whose haplotypes are drawn in place of the reference, if any.
    """

    store: GenomeStore
    weight: float
    runs: np.ndarray
    haplotypes: Haplotypes | None = None

    @property
    def name(self) -> str:
        """The file's name; for haplotypes, ``reference.fa::calls.vcf.gz``."""
        return "::".join(file.name for file in self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The FASTA file, and the VCF file of its haplotypes."""
        return (self.store.path, *((self.haplotypes.path,) if self.haplotypes else ()))

    @property
    def contigs(self) -> tuple[str, ...]:
        """The names of the contigs, those without a base in `runs` among them."""
        return self.store.names

    @property
    def known(self) -> int:
        """Bases in `runs`."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum())


def read_genomes(sources: Sequence[str], data_dir: Path | None = None) -> list[Genome]:
    """Open a mixture of genomes, each source as ``SOURCE`` or ``SOURCE=WEIGHT``.

    A source is a FASTA file (plain, gzip, bgzip or xz); ``reference.fa::calls.vcf.gz``, which
    stands for the haplotypes of the phased VCF file's samples (:mod:`cedilla.dna.haplotypes`);
    or a list, a file that ends in ``.txt`` or ``.tsv`` and has such a source on each line, with a
    weight after a tab or without; its paths are relative to the list, ``#`` begins a comment. A
    list's own weight is shared out among its genomes by theirs.

    A weight is the share of the windows that a genome gets, relative to the others. Without
    weights, it is the number of the genome's known bases. A relative path is looked for here, in
    `data_dir`, and in the folder that the environment variable ``CEDILLA_DATA`` names. IUPAC
    codes for several bases are read as N; a note on standard error counts them.

    Raises
    ------
    InputError
        With the problems of all sources: files that are absent, cut off, without bases, with
        letters that are no nucleotide codes or contigs of one name; weights that are no numbers
        above 0, or that some genomes have and others not. A
        :class:`~cedilla.errors.MissingData` where nothing is wrong but absent files.
    """
    return [
        Genome(part.store, part.weight, part.store.runs, part.haplotypes)
        for part in open_mixture(sources, data_dir)
    ]


def hold_out(
    genomes: Sequence[Genome], names: Sequence[str] = (), *, share: float = 0.02
) -> tuple[list[Genome], list[Genome]]:
    """Part genomes into those to train on and those to validate on, which share no base.

    `names` are contigs, or regions such as ``chrX:50,000,001-62,000,000``, counted from 1 with
    both ends included, as samtools writes them (without an end: to the contig's). They are held
    out of every genome that has a contig of this name. Without names, the last `share` of every
    contig is held out. A genome of which nothing is held out has no runs in the second list.

    Raises :class:`InputError` with every name that is in no genome, and every impossible region.
    """
    spans = _named_spans(genomes, names) if names else [_ends(g.store, share) for g in genomes]
    parts = [_parted(g.runs, held) for g, held in zip(genomes, spans, strict=True)]
    training = [replace(g, runs=p[0]) for g, p in zip(genomes, parts, strict=True)]
    return training, [replace(g, runs=p[1]) for g, p in zip(genomes, parts, strict=True)]


def _ends(store: GenomeStore, share: float) -> np.ndarray:
    """The last `share` of every contig, as intervals (C, 2) of the store's bases."""
    cuts = np.round(store.lengths * (1 - share)).astype(np.int64)
    return np.stack([store.offsets + cuts, store.offsets + store.lengths], axis=1)


def _named_spans(genomes: Sequence[Genome], names: Sequence[str]) -> list[np.ndarray]:
    """What the names hold out of each genome, as intervals (n, 2) of its store's bases."""
    tables = [{name: k for k, name in enumerate(genome.contigs)} for genome in genomes]
    known = dict.fromkeys(name for table in tables for name in table)
    spans: list[list[tuple[int, int]]] = [[] for _ in genomes]
    problems: list[Problem] = []
    for name in names:
        contig, start0, end0 = _region(name, known)
        if contig not in known:
            problems.append(Problem(where=name, what="is in no genome", mend=_near(contig, known)))
            continue
        for genome, table, own in zip(genomes, tables, spans, strict=True):
            if (k := table.get(contig)) is None:
                continue
            offset, length = int(genome.store.offsets[k]), int(genome.store.lengths[k])
            end = length if end0 is None else end0
            if 0 <= start0 < end <= length:
                own.append((offset + start0, offset + end))
            else:
                what = f"is no region of {contig}, which has {length:,} bases in {genome.name}"
                mend = "write CONTIG:FIRST-LAST, counted from 1, the last included"
                problems.append(Problem(where=name, what=what, mend=mend))
    stop_on_errors(problems)
    return [np.array(own, dtype=np.int64).reshape(-1, 2) for own in spans]


def _region(name: str, known: dict[str, None]) -> tuple[str, int, int | None]:
    """The contig, start and end (0-based, half-open; None: the contig's) of a name."""
    match = _REGION.fullmatch(name)
    if name in known or match is None:
        return name, 0, None
    first, last = (digits.replace(",", "") for digits in match.groups()[1:])
    return match[1], int(first or 0) - 1, int(last) if last else None


def _near(contig: str, known: dict[str, None]) -> str:
    near = difflib.get_close_matches(contig, known, n=3, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the contigs are {', '.join(list(known)[:5])}" + (", …" if len(known) > 5 else "")


def _parted(runs: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`runs` (R, 2) outside and inside of `spans` (n, 2), which may overlap each other."""
    spans = _merged(spans)
    points = np.unique(np.concatenate([runs.ravel(), spans.ravel()]))
    starts, ends = points[:-1], points[1:]
    pieces = np.stack([starts, ends], axis=1)
    held = _within(starts, spans)
    known = _within(starts, runs)
    return pieces[known & ~held], pieces[known & held]


def _merged(spans: np.ndarray) -> np.ndarray:
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    spans = spans[spans[:, 1] > spans[:, 0]]
    if not len(spans):
        return spans
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] > reach[:-1])
    return np.stack([spans[first, 0], reach[np.append(first[1:], True)]], axis=1)


def _within(points: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Which of `points` lie in one of the sorted, disjoint `intervals` (n, 2)."""
    if not len(intervals):
        return np.zeros(len(points), dtype=bool)
    k = np.searchsorted(intervals[:, 0], points, side="right") - 1
    inside: np.ndarray = (k >= 0) & (points < intervals[np.maximum(k, 0), 1])
    return inside


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of genomes.

    codes: uint8 (n, length), 0 to 3 in the alphabet's order; never N.
    soft: bool (n, length), bases in lower case in the FASTA file: repeats, if it is soft-masked.
    """

    codes: np.ndarray
    soft: np.ndarray


class WindowSampler:
    """Draws windows without N from genomes, exactly in proportion to their weights.

    As for the Nucleotide Transformer (Dalla-Torre et al. 2024, Nature Methods), a genome is laid
    out in chunks of ``length + start`` bases, of which neighbours share `overlap`; a window takes
    a chunk with equal chances, then begins at one of its first ``start + 1`` bases. Two things
    differ. Chunks are laid over the runs between N, so that no window is ever drawn in vain; a
    run shorter than a chunk is a chunk if a window fits. And a chunk's place in its run is drawn
    anew each time, so that every window that fits can come up, not those alone that begin near
    the borders of fixed chunks.

    Parameters
    ----------
    genomes:
        Those without runs are passed over; a note names others that have none long enough.
    length:
        Bases a window.
    part:
        What the runs are part of, for the error that none is long enough.
    overlap, start:
        Bases that chunks share, and the largest random start in a chunk.
    strands:
        Whether half of the windows are the reverse complement.
    """

    def __init__(
        self,
        genomes: Sequence[Genome],
        *,
        length: int,
        part: str = "contig",
        overlap: int = 50,
        start: int = 100,
        strands: bool = True,
    ) -> None:
        if not 0 <= overlap < length + start or start < 0:
            what = f"an overlap of {overlap} is impossible for chunks of {length} + {start} bases"
            raise InputError.one("genomes", what, "0 at least, and less than a chunk")
        self.length, self.chunk, self.strands = length, length + start, strands
        runs = [g.runs[g.runs[:, 1] - g.runs[:, 0] >= length] for g in genomes]
        self._note_short(genomes, runs)
        used = [k for k, own in enumerate(runs) if len(own)]
        if not used:
            mend = "lower --tokens, or change --validation-share"
            raise InputError.one("genomes", f"no {part} has {length:,} bases without N", mend)
        self.genomes = [genomes[k] for k in used]
        self.runs = np.concatenate([runs[k] for k in used])
        sizes = self.runs[:, 1] - self.runs[:, 0]
        chunks = np.maximum(1, -(-(sizes - overlap) // (self.chunk - overlap)))
        self._chunk_ends = np.cumsum(chunks)
        last = np.cumsum([len(runs[k]) for k in used])
        self._borders = np.append(0, self._chunk_ends[last - 1])  # chunks before each genome
        weights = np.cumsum([genome.weight for genome in self.genomes])
        self._shares = weights[:-1] / weights[-1]

    def _note_short(self, genomes: Sequence[Genome], runs: Sequence[np.ndarray]) -> None:
        short = [
            g.name for g, own in zip(genomes, runs, strict=True) if len(g.runs) > len(own) == 0
        ]
        if 0 < len(short) < len(genomes):
            console.print(
                f"note: {len(short):,} of {len(genomes):,} genomes have no {self.length:,} bases "
                f"without N in this part, and are left out of it: {', '.join(short[:5])}"
                + (", …" if len(short) > 5 else ""),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def draw(self, n: int, rng: np.random.Generator, rows: slice = slice(None)) -> Windows:
        """`rows` of n windows.

        The random numbers are drawn for all n, but only `rows` are read: several processes that
        hold equal generators and take their own rows have the n windows between them.
        """
        u = rng.random((n, 6))[rows]
        genome = np.searchsorted(self._shares, u[:, 0], side="right")
        before, after = self._borders[genome], self._borders[genome + 1]
        run = np.searchsorted(self._chunk_ends, before + _upto(u[:, 1], after - before), "right")
        first, end = self.runs[run].T
        span = np.minimum(self.chunk, end - first)
        starts = first + _upto(u[:, 2], end - first - span + 1)
        starts += _upto(u[:, 3], span - self.length + 1)
        raw = np.empty((len(u), self.length), dtype=np.uint8)
        for i, (g, at) in enumerate(zip(genome.tolist(), starts.tolist(), strict=True)):
            if (haplotypes := self.genomes[g].haplotypes) is None:
                raw[i] = self.genomes[g].store.bases[at : at + self.length]
            else:
                within = (int(first[i]), int(end[i]))
                raw[i] = haplotypes.window(u[i, 4], at, self.length, within)
        return self._oriented(raw, u[:, 5] < 0.5)

    def _oriented(self, raw: np.ndarray, reverse: np.ndarray) -> Windows:
        codes, soft = raw & np.uint8(CODE), (raw & SOFT).astype(bool)
        if self.strands:
            codes[reverse] = 3 - codes[reverse, ::-1]
            soft[reverse] = soft[reverse, ::-1]
        return Windows(codes, soft)


def _upto(u: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Numbers from 0 to below `count`, from uniform ones."""
    # The largest u below 1 times a large count may round to the count itself.
    numbers: np.ndarray = np.minimum((u * count).astype(np.int64), count - 1)
    return numbers
