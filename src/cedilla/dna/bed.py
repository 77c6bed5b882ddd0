"""BED intervals, 0-based and half-open, as a stream of sequences from a genome."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pysam

from cedilla.dna.alphabet import clean, reverse_complement
from cedilla.dna.lines import GZIP, is_bgzip, numbered_lines
from cedilla.dna.records import Findings, Record
from cedilla.errors import InputError
from cedilla.progress import console

NO_INTERVALS = (b"#", b"track", b"browser")
_FORMAT = "BED has chromosome, start and end between tabs"


class Genome:
    """A FASTA file with access by position."""

    def __init__(self, path: Path, file: pysam.FastaFile) -> None:
        self.path = path
        self.lengths = dict(zip(file.references, file.lengths, strict=True))
        self._file = file

    def fetch(self, chrom: str, start0: int, end0: int) -> str:
        """The bases of an interval, as the file has them."""
        try:
            bases: str = self._file.fetch(chrom, start0, end0)
        except (OSError, ValueError):
            bases = ""
        if len(bases) != end0 - start0:
            where = f"{self.path} {chrom}:{start0}-{end0}"
            raise InputError.one(where, "cannot be read: cut off or damaged", "copy the file anew")
        return bases

    def mend_of(self, chrom: str) -> str:
        """What a user can do about a chromosome that the genome lacks."""
        other = chrom.removeprefix("chr") if chrom.startswith("chr") else f"chr{chrom}"
        if other in self.lengths:
            return f"the genome calls it {other}: rename one of the two, names are never guessed"
        near = difflib.get_close_matches(chrom, self.lengths, n=1, cutoff=0.6)
        some = ", ".join(list(self.lengths)[:5]) + (", …" if len(self.lengths) > 5 else "")
        return f"did you mean {near[0]}?" if near else f"the genome has {some}"


@contextmanager
def open_genome(path: Path) -> Iterator[Genome]:
    """A FASTA file, plain or bgzip, with its index; without a fresh ``.fai`` one is made aside.

    Raises :class:`InputError` for a file that is absent, gzip but not bgzip, or not to be indexed.
    """
    if not path.is_file():
        raise InputError.one(path, "not found", "name the FASTA file of the genome")
    with open(path, "rb") as file:
        zipped = file.read(2) == GZIP
    if zipped and not is_bgzip(path):
        mend = f"gunzip it, or make it readable in the middle: zcat {path.name} | bgzip"
        raise InputError.one(path, "is gzip, which can only be read from the start", mend)
    indexes = [path.with_name(path.name + end) for end in (".fai", ".gzi")[: 1 + zipped]]
    newest = path.stat().st_mtime
    with tempfile.TemporaryDirectory() as folder:
        if not all(index.exists() and index.stat().st_mtime >= newest for index in indexes):
            indexes = _index(path, zipped, Path(folder))
        places = dict(zip(("filepath_index", "filepath_index_compressed"), indexes, strict=False))
        try:
            opened = pysam.FastaFile(str(path), **{k: str(v) for k, v in places.items()})
        except (OSError, ValueError):
            raise InputError.one(indexes[0], "is damaged", "delete it") from None
        with opened:
            yield Genome(path, opened)


def _index(path: Path, zipped: bool, folder: Path) -> list[Path]:
    """Indexes of a genome outside its own folder, which may be shared or read-only."""
    note = f"indexing {path}; `samtools faidx` would do it once for all"
    console.print(note, markup=False, highlight=False, soft_wrap=True)
    indexes = [folder / "fai", folder / "gzi"][: 1 + zipped]
    options = [w for o, i in zip(("--fai-idx", "--gzi-idx"), indexes, strict=False) for w in (o, i)]
    before = pysam.set_verbosity(0)
    try:
        pysam.faidx(str(path), *map(str, options))
    except pysam.SamtoolsError:
        mend = "is it FASTA, whole, with lines of one length? `samtools faidx` names the line"
        raise InputError.one(path, "cannot be indexed", mend) from None
    finally:
        pysam.set_verbosity(before)
    return indexes


def read_bed(path: Path, genome: Genome, findings: Findings) -> Iterator[Record]:
    """The sequences of a BED file's intervals, in its order.

    The id is column 4, or ``chrom:start0-end0(strand)`` where that is absent or ``.``. An interval
    on the minus strand (column 6) is reverse-complemented. Intervals that the genome does not
    have are findings.
    """
    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith(NO_INTERVALS):
            continue
        where = f"{path} line {number}"
        fields = line.decode("utf-8", "replace").split("\t" if b"\t" in line else None)
        interval = _interval(fields, where, genome, findings)
        if interval is None:
            continue
        chrom, start0, end0, strand = interval
        bases = genome.fetch(chrom, start0, end0)
        if strand == "-":
            bases = reverse_complement(clean(bases))
        place = f"{chrom}:{start0}-{end0}" + (f"({strand})" if strand in "+-" else "")
        name = fields[3].strip() if len(fields) > 3 else "."
        yield Record(where=where, id=place if name in (".", "") else name, sequence=bases)


def _interval(
    fields: list[str], where: str, genome: Genome, findings: Findings
) -> tuple[str, int, int, str] | None:
    """chrom, start0, end0 and strand of a line, or None with a finding."""
    if len(fields) < 3 or not (fields[1].strip().isdecimal() and fields[2].strip().isdecimal()):
        shown = " ".join(fields)[:40]
        findings.add("bed", where=where, what=f"{shown!r} is no interval", mend=_FORMAT)
        return None
    chrom, start0, end0 = fields[0].strip(), int(fields[1]), int(fields[2])
    strand = fields[5].strip() if len(fields) > 5 else "."
    if chrom not in genome.lengths:
        what = f"{genome.path.name} has no {chrom}"
        findings.add(f"contig {chrom}", where=where, what=what, mend=genome.mend_of(chrom))
    elif not start0 < end0 <= genome.lengths[chrom]:
        length = genome.lengths[chrom]
        what = f"{start0}-{end0} does not lie in {chrom}, which has {length:,} bases"
        mend = "BED is 0-based and half-open, with start < end; is it another build?"
        findings.add("range", where=where, what=what, mend=mend)
    elif strand not in ("+", "-", "."):
        what = f"strand {strand!r} is none of +, - and ."
        findings.add("strand", where=where, what=what, mend="the strand is column 6")
    else:
        return chrom, start0, end0, strand
    return None
