"""Lines: numbered, whatever ends them; a file that breaks off is refused, not taken for whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import pysam
import pytest

from cedilla.dna.lines import head, is_bgzip, numbered_lines
from cedilla.errors import InputError


def read(path: Path) -> list[tuple[int, bytes]]:
    return list(numbered_lines(path))


@pytest.mark.parametrize("zipped", [False, True])
def test_line_ends_and_byte_order_marks_are_no_part_of_a_line(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a"
    content = b"\xef\xbb\xbf>a\r\nAC \n\nGT"
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert read(path) == [(1, b">a"), (2, b"AC "), (3, b""), (4, b"GT")]
    assert head(path, 5) == b">a"


def bgzipped(tmp_path: Path, lines: int = 20_000) -> Path:
    (tmp_path / "plain").write_bytes(b"".join(b"line %d\n" % i for i in range(1, lines + 1)))
    pysam.tabix_compress(str(tmp_path / "plain"), str(tmp_path / "bgz"), force=True)
    return tmp_path / "bgz"


def test_bgzip_is_gzip_with_marks(tmp_path: Path) -> None:
    path = bgzipped(tmp_path)
    assert is_bgzip(path)
    assert not is_bgzip(tmp_path / "plain")
    assert read(path)[-1] == (20_000, b"line 20000")
    (tmp_path / "short").write_bytes(b"\x1f\x8b")
    assert not is_bgzip(tmp_path / "short")


@pytest.mark.parametrize("cut", [40, -40, -28, -1])
def test_bgzip_that_breaks_off_is_refused_with_its_line(tmp_path: Path, cut: int) -> None:
    path = bgzipped(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    seen = []
    with pytest.raises(InputError, match="cut off or damaged") as caught:
        seen.extend(numbered_lines(path))
    assert f"bgz line {len(seen) + 1}: " in str(caught.value)
    assert len(seen) == 20_000 if cut == -28 else len(seen) <= 20_000


def test_gzip_that_breaks_off_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    whole = gzip.compress(b"".join(b"line %d\n" % (i**3) for i in range(20_000)))
    path.write_bytes(whole[: len(whole) // 2])
    seen = []
    with pytest.raises(InputError, match="cut off") as caught:
        seen.extend(numbered_lines(path))
    assert f"line {len(seen) + 1}: " in str(caught.value)
    assert len(seen) > 5000
    path.write_bytes(whole[:5])
    with pytest.raises(InputError, match="line 1: the gzip data are cut off"):
        head(path)


def test_carriage_returns_alone_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b">a\nACGT\n>b\rACGT\r")
    with pytest.raises(InputError, match="a line 3: has carriage returns inside"):
        read(tmp_path / "a")
