"""Random windows of genomes as token ids, for masked-language-model pre-training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pysam
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer
from cedilla.errors import InputError, MissingData

_N = alphabet.BASES.index("N")


@dataclass(frozen=True, slots=True)
class Genome:
    """The contigs of a FASTA file, as ``uint8`` codes, and how often to draw from it."""

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
    variable ``CEDILLA_DATA`` names.
    """
    name, _, weight = source.partition("=")
    folders = [Path(), *(Path(f) for f in (data_dir, os.environ.get("CEDILLA_DATA")) if f)]
    for folder in folders:
        if (folder / name).is_file():
            break
    else:
        raise MissingData.one(name, "not found", "name a FASTA file, or its folder in --data-dir")
    try:
        return folder / name, float(weight) if weight else None
    except ValueError:
        raise InputError.one(source, f"{weight!r} is no weight", "write PATH=2.5") from None


def read_genomes(sources: Sequence[str], data_dir: Path | None = None) -> list[Genome]:
    """Read FASTA files (plain or gzip), given as ``PATH`` or ``PATH=WEIGHT``.

    Without a weight, a genome is drawn in proportion to its known bases.
    """
    genomes = []
    for source in sources:
        path, weight = find_genome(source, data_dir)
        with pysam.FastxFile(str(path)) as file:
            contigs = tuple(
                alphabet.encode(alphabet.clean(record.sequence or "")) for record in file
            )
        genome = Genome(path.name, contigs, 0.0)
        if genome.known == 0:
            raise InputError.one(path, "holds no bases", "is it a FASTA file?")
        share = float(genome.known) if weight is None else weight
        genomes.append(Genome(genome.name, contigs, share))
    return genomes


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
    """Draws windows without N, on either strand, in proportion to the genomes' weights."""

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
        """n windows (n, length) of codes; a window with an N is drawn again."""
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
