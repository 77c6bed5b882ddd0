"""Lines of text files, plain or gzip; a file that breaks off in the middle is never taken whole."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from cedilla.errors import InputError

GZIP = b"\x1f\x8b"
# The empty block that ends every bgzip file.
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def is_bgzip(path: Path) -> bool:
    """Whether a file is block-compressed by bgzip, and so allows access in the middle."""
    with open(path, "rb") as file:
        start = file.read(14).ljust(14)
    return start.startswith(GZIP) and bool(start[3] & 4) and start[12:] == b"BC"


def head(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, decompressed if they are gzip, without a byte-order mark."""
    with _opened(path) as file:
        try:
            return file.read(size).removeprefix(codecs.BOM_UTF8)
        except _DAMAGE:
            raise _cut_off(path, 1) from None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line of a file with its number from 1, without line end or byte-order mark.

    Raises :class:`InputError` with the line at which gzip data break off, also where bgzip data
    break off between two blocks, and for carriage returns that are no part of a line end.
    """
    number = 0
    with _opened(path) as file:
        try:
            for line in file:
                number += 1
                text = line.rstrip(b"\r\n")
                if b"\r" in text:
                    what = "has carriage returns inside; are they all of its line ends?"
                    raise InputError.one(f"{path} line {number}", what, "convert: tr '\\r' '\\n'")
                yield number, text if number > 1 else text.removeprefix(codecs.BOM_UTF8)
        except _DAMAGE:
            raise _cut_off(path, number + 1) from None
    if is_bgzip(path) and not ends_whole(path):
        raise _cut_off(path, number + 1)


def _opened(path: Path) -> BinaryIO:
    with open(path, "rb") as file:
        zipped = file.read(2) == GZIP
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else open(path, "rb")


def ends_whole(path: Path) -> bool:
    """Whether a bgzip file has the empty block that marks its end."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(_BGZF_END)))
        return file.read() == _BGZF_END


def _cut_off(path: Path, line: int) -> InputError:
    return InputError.one(
        f"{path} line {line}", "the gzip data are cut off or damaged", "copy the file anew"
    )
