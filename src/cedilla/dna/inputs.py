"""What a verb embeds: a file whose format its content tells, or an iterable of Python."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from cedilla.dna.alphabet import first_forbidden
from cedilla.dna.bed import NO_INTERVALS, open_genome, read_bed
from cedilla.dna.fasta import read_fasta
from cedilla.dna.lines import head
from cedilla.dna.records import Findings, Record, Source
from cedilla.dna.table_rows import read_delimited, read_parquet
from cedilla.errors import InputError, Problem

Format = Literal["FASTA", "BED", "Parquet", "table"]
_OTHERS = {
    b"@": "FASTQ or SAM: `seqtk seq -a` or `samtools fasta` makes FASTA of it",
    b"PK\x03\x04": "an Excel workbook or a zip archive: save it as CSV, or unpack it",
    b"BZh": "compressed with bzip2: `bunzip2` it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: `unxz` it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: `unzstd` it, or use gzip",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"BAM\x01": "BAM: `samtools fasta` makes FASTA of it",
    b"##fileformat=VCF": "VCF: it holds variants, not sequences",
}


@contextmanager
def open_input(
    input: Path | Iterable[Any], *, genome: Path | None, sequence: str, id: str | None
) -> Iterator[tuple[str, Source]]:
    """The name of an input, and its records, which can be passed over several times.

    Raises :class:`InputError` for a file that is absent, empty or of no known format, and for
    a genome that is absent, not to be indexed, or of no use with this input.
    """
    with ExitStack() as stack:
        if not isinstance(input, str | Path):
            if genome is not None:
                raise InputError.one("--genome", "goes with a BED file only", "leave it out")
            yield "sequences", _python_source(input, stack)
            return
        if isinstance(input, str) and len(input) > 40 and first_forbidden(input) is None:
            raise InputError.one("input", "is a sequence, not a path", "pass a list: [sequence]")
        path = Path(input)
        format = recognise(path)
        if (format == "BED") != (genome is not None):
            raise InputError([_genome_problem(path, format)])
        sources: dict[Format, Source] = {
            "FASTA": partial(read_fasta, path),
            "Parquet": partial(read_parquet, path, sequence=sequence, id=id),
            "table": partial(read_delimited, path, sequence=sequence, id=id),
        }
        if genome is not None:
            sources["BED"] = partial(read_bed, path, stack.enter_context(open_genome(genome)))
        yield path.name, sources[format]


def _genome_problem(path: Path, format: Format) -> Problem:
    if format == "BED":
        what, mend = "is BED: its sequences stand in a genome", "pass --genome genome.fa"
        return Problem(where=str(path), what=what, mend=mend)
    what = f"is {'a table' if format == 'table' else format}, not BED"
    return Problem(where=str(path), what=what, mend="--genome goes with a BED file only")


def recognise(path: Path) -> Format:
    """The format of a file, by its content; raises :class:`InputError` for what is none."""
    if not path.exists():
        names = [beside.name for beside in path.parent.glob("*")]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
        mend = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise InputError.one(path, "does not exist", mend)
    if not path.is_file():
        mend = "it is read twice, to check all of it first: name a file"
        raise InputError.one(path, "is no regular file", mend)
    start = head(path)
    lines = [line for line in start.splitlines() if line.strip()]
    if not lines:
        raise InputError.one(path, "is empty", "at least one sequence is needed")
    if start.startswith(b"PAR1"):
        return "Parquet"
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise InputError.one(path, f"is {name}", "FASTA, BED, CSV, TSV and Parquet can be read")
    if lines[0].startswith(b">"):
        return "FASTA"
    # A table has names where BED has the first interval.
    fields = next((line for line in lines if not line.startswith(NO_INTERVALS)), b"").split()
    return "BED" if len(fields) > 2 and fields[1].isdigit() and fields[2].isdigit() else "table"


def _python_source(items: Iterable[Any], stack: ExitStack) -> Source:
    pairs = items.items() if isinstance(items, Mapping) else items
    if not isinstance(pairs, Iterable):
        what = f"{type(items).__name__} is neither a path nor an iterable of sequences"
        raise InputError.one("input", what, "pass a list of sequences, or of (id, sequence) pairs")
    if isinstance(pairs, Iterator):
        return partial(_records, stack.enter_context(_spooled(pairs)))
    return partial(_records, pairs)


@contextmanager
def _spooled(items: Iterable[Any]) -> Iterator[_Spool]:
    """An iterator's items, kept on disk, so that they can be passed over several times."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item, default=repr) + "\n")
        yield _Spool(file)


class _Spool:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Any]:
        self._file.seek(0)
        yield from map(json.loads, self._file)


def _records(items: Iterable[Any], findings: Findings) -> Iterator[Record]:
    for number, item in enumerate(items, start=1):
        where = f"sequence {number}"
        match item:
            case str():
                yield Record(where=where, id=str(number), sequence=item.strip())
            case [id, str(bases)]:
                where += f" ({id})"
                yield Record(where=where, id=str(id), sequence=bases.strip())
            case _:
                what = f"{item!r:.40} is neither a sequence nor a pair of id and sequence"
                findings.add("item", where=where, what=what, mend="pass text, or (id, text)")
