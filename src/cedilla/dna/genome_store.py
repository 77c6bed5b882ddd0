"""Genomes on disk as one byte a base, mapped into memory: RAM does not grow with the genome.

A FASTA file is turned once into a file of bytes and a small JSON index, both in
``cache_dir()/genomes``. A byte is a base's code (:mod:`cedilla.dna.alphabet`), plus `SOFT` where
the base stands in lower case, as repeats do in a soft-masked genome.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from cedilla.dna import alphabet
from cedilla.dna.lines import GZIP, ends_whole, is_bgzip
from cedilla.dna.tables import listed
from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import cache_dir, whole_file, write_json
from cedilla.progress import console, progress_bar

SOFT = 8  # the bit of a byte that says lower case
CODE = 7  # the bits that hold the base's code
N = alphabet.BASES.index("N")

_FORMAT = 1
_BLOCK = 1 << 20
_XZ = b"\xfd7zXZ\x00"
_AMBIGUOUS, _FORBIDDEN = 6, 255
_BLANKS = b" \t\n\v\f\r"
_UTF8_MARK = b"\xef\xbb\xbf"
_LONGEST_HEADER = 1 << 20  # what is longer is no header: the file is none of FASTA


def _byte_table() -> bytes:
    table = bytearray([_FORBIDDEN] * 256)
    for letter in alphabet.IUPAC:
        clean = alphabet.clean(letter)
        code = _AMBIGUOUS if clean == "N" != letter else alphabet.BASES.index(clean)
        table[ord(letter)], table[ord(letter.lower())] = code, code | SOFT
    return bytes(table)


_BYTES = _byte_table()
# Codes for several bases become N once they are counted.
_SETTLED = bytes(N | (b & SOFT) if b & CODE == _AMBIGUOUS and b < 16 else b for b in range(256))


@dataclass(frozen=True, slots=True)
class GenomeStore:
    """A genome as bytes on disk.

    path: the FASTA file.
    names, offsets (C,), lengths (C,): the contigs, and where each begins in `bases`.
    runs: int64 (R, 2), the intervals of `bases` without N, each within one contig, in order.
    bases: uint8 (sum of lengths,), read from disk as it is looked at.
    """

    path: Path
    names: tuple[str, ...]
    offsets: np.ndarray
    lengths: np.ndarray
    runs: np.ndarray
    bases: np.ndarray

    @property
    def known(self) -> int:
        """Bases that are not N."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum())


def open_store(path: Path) -> GenomeStore:
    """Open the genome in a FASTA file: plain, gzip, bgzip or xz.

    The first time, the file is read through and stored in the cache, under a name made of its
    path, size, time of change, first and last bytes; a file that has changed is stored anew.

    Raises
    ------
    InputError
        For a file that is cut off or damaged, that holds no bases, letters that are no nucleotide
        codes, or two contigs of one name, and for a cache that cannot be written.
    """
    try:
        name = cache_dir() / "genomes" / f"{path.name}-{_fingerprint(path)}"
    except OSError as error:
        raise _unreadable(path, error) from None
    bases, index = Path(f"{name}.bases"), Path(f"{name}.json")
    if (contents := _read_index(index, bases)) is None:
        try:
            contents = _store(path, bases, index)
        except OSError as error:
            what = f"cannot hold the stored genome ({error.strerror or error})"
            mend = "set CEDILLA_CACHE to a folder with room for one byte a base"
            raise InputError.one(cache_dir(), what, mend) from None
    if contents["ambiguous"]:
        _note_ambiguous(path, **contents["ambiguous"])
    return GenomeStore(
        path,
        tuple(contents["names"]),
        np.array(contents["offsets"], dtype=np.int64),
        np.array(contents["lengths"], dtype=np.int64),
        np.array(contents["runs"], dtype=np.int64).reshape(-1, 2),
        _mapped(bases),
    )


def _fingerprint(path: Path) -> str:
    state = path.stat()
    with open(path, "rb") as file:
        first = file.read(_BLOCK >> 4)
        file.seek(max(0, state.st_size - (_BLOCK >> 4)))
        last = file.read()
    named = repr((_FORMAT, str(path.resolve()), state.st_size, state.st_mtime_ns, first, last))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _read_index(index: Path, bases: Path) -> dict[str, Any] | None:
    """The index, or None where either file is absent or is not what the other says."""
    try:
        contents: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        whole = bases.stat().st_size == sum(contents["lengths"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return contents if whole else None


def _mapped(bases: Path) -> np.ndarray:
    with open(bases, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _store(path: Path, bases: Path, index: Path) -> dict[str, Any]:
    """Write both files; the index last, as it says that the other is whole."""
    with whole_file(bases) as draft, open(draft, "wb") as out:
        writer = _Writer(path, out)
        for block in _blocks(path):
            writer.read(block)
        contents = writer.finished()
    write_json(index, contents | {"source": str(path)})
    return contents


def _blocks(path: Path) -> Iterator[bytes]:
    """The text of a file in blocks, decompressed, under a bar that vanishes."""
    with open(path, "rb") as raw, progress_bar(transient=True) as bar:
        task = bar.add_task(f"storing {path.name}", total=path.stat().st_size)
        try:
            source = _decompressed(raw)
            while block := source.read(_BLOCK):
                yield block
                bar.update(task, completed=raw.tell())
            if is_bgzip(path) and not ends_whole(path):
                raise _damaged(path)
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError):
            raise _damaged(path) from None
        except OSError as error:
            raise _unreadable(path, error) from None


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(len(_XZ))
    raw.seek(0)
    if magic.startswith(GZIP):
        return cast(IO[bytes], gzip.open(raw))
    return cast(IO[bytes], lzma.open(raw)) if magic == _XZ else raw


def _damaged(path: Path) -> InputError:
    what = "is cut off, damaged or no FASTA file"
    mend = "copy it again; `gzip -t` tests one that ends in .gz, `xz -t` one that ends in .xz"
    return InputError.one(path, what, mend)


def _unreadable(path: Path, error: OSError) -> InputError:
    what = f"cannot be read ({error.strerror or error})"
    return InputError.one(path, what, "check the path and its permissions")


@dataclass(slots=True)
class _Writer:
    """Reads FASTA block by block, writes its bases, and keeps what the index needs."""

    path: Path
    out: IO[bytes]
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    edges: list[np.ndarray] = field(default_factory=list)  # where N ends and begins, in turn
    forbidden: list[tuple[str, str, int]] = field(default_factory=list)
    ambiguous: dict[str, int] = field(default_factory=dict)
    header: bytearray | None = None  # of which more may come
    at: int = 0  # bases written
    in_run: bool = False
    line_ended: bool = True  # so that ">" begins a header
    refused: bool = False  # whether the contig has a forbidden letter already
    stray: bool = False

    def read(self, block: bytes) -> None:
        """Take the next bytes of the file."""
        if not self.names and self.header is None:
            block = block.removeprefix(_UTF8_MARK)
        at = 0
        while at < len(block):
            if self.header is not None:
                at = self._read_header(block, at)
            elif self.line_ended and block[at] == ord(">"):
                self._end_contig()
                self.header, at = bytearray(), at + 1
            else:
                end = block.find(b"\n>", at)
                end = len(block) if end < 0 else end + 1
                self._read_bases(block[at:end])
                self.line_ended = block[end - 1] == ord("\n")
                at = end

    def _read_header(self, block: bytes, at: int) -> int:
        assert self.header is not None
        end = block.find(b"\n", at)
        self.header += block[at : len(block) if end < 0 else end]
        if len(self.header) > _LONGEST_HEADER:
            raise _damaged(self.path)
        if end < 0:
            return len(block)
        words = self.header.decode("utf-8", "replace").split(maxsplit=1)
        self.names.append(words[0] if words else str(len(self.names) + 1))
        self.offsets.append(self.at)
        self.header, self.line_ended, self.refused = None, True, False
        return end + 1

    def _read_bases(self, text: bytes) -> None:
        codes = text.translate(_BYTES, _BLANKS)
        if not codes:
            return
        if not self.names:
            self.stray = True
            return
        if _FORBIDDEN in codes:
            self._refuse(text, codes)
        if count := codes.count(_AMBIGUOUS) + codes.count(_AMBIGUOUS | SOFT):
            record = f"record {self.names[-1]}"
            self.ambiguous[record] = self.ambiguous.get(record, 0) + count
            codes = codes.translate(_SETTLED)
        self._find_runs(np.frombuffer(codes, dtype=np.uint8) & CODE < N)
        self.out.write(codes)
        self.at += len(codes)

    def _refuse(self, text: bytes, codes: bytes) -> None:
        if not self.refused:
            first = codes.index(_FORBIDDEN)
            letter = chr(text.translate(None, _BLANKS)[first])
            position = self.at - self.offsets[-1] + first + 1
            self.forbidden.append((f"record {self.names[-1]}", letter, position))
        self.refused = True

    def _find_runs(self, known: np.ndarray) -> None:
        if bool(known[0]) != self.in_run:
            self.edges.append(np.array([self.at]))
        self.edges.append(np.flatnonzero(known[1:] != known[:-1]) + (self.at + 1))
        self.in_run = bool(known[-1])

    def _end_contig(self) -> None:
        if self.in_run:
            self.edges.append(np.array([self.at]))
        self.in_run = False

    def finished(self) -> dict[str, Any]:
        """The index; raises :class:`InputError` with all that is wrong with the file."""
        self._end_contig()
        stop_on_errors([*self._forbidden(), *self._twice()])
        runs = np.concatenate([np.empty(0, np.int64), *self.edges]).reshape(-1, 2)
        if not len(runs):
            raise InputError.one(self.path, "holds no bases", "is it a FASTA file?")
        if self.stray:
            mend = "a FASTA file begins with `>` and a name: give the first record its header"
            raise InputError.one(f"{self.path} line 1", "is no header", mend)
        counts = self.ambiguous
        first = next(iter(counts), "")
        note = {"total": sum(counts.values()), "records": len(counts), "first": first}
        return {
            "names": self.names,
            "offsets": self.offsets,
            "lengths": np.diff([*self.offsets, self.at]).tolist(),
            "runs": runs.ravel().tolist(),
            "ambiguous": note if counts else {},
        }

    def _forbidden(self) -> list[Problem]:
        """The first forbidden letter of each record, with its 1-based position."""
        found = self.forbidden
        return listed(
            self.path,
            [name for name, _, _ in found],
            lambda k: f"{found[k][1]!r} at position {found[k][2]:,} is no nucleotide code",
            "use A, C, G, T, N or another IUPAC code",
        )

    def _twice(self) -> list[Problem]:
        numbered = list(enumerate(self.names))
        first = {name: k for k, name in reversed(numbered)}
        twice = [name for k, name in numbered if first[name] != k]
        return listed(
            self.path,
            [f"record {name}" for name in twice],
            lambda _: "the same name stands further up already",
            "make the names of the contigs unique",
        )


def _note_ambiguous(path: Path, total: int, records: int, first: str) -> None:
    console.print(
        f"note: {path}: {total:,} IUPAC codes such as R or Y in {records:,} records (the "
        f"first in {first}) are read as N",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
