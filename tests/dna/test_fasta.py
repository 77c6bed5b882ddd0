"""FASTA as a stream: names, lines, and what a file may look like."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from cedilla.dna.fasta import read_fasta
from cedilla.dna.records import Findings, Record
from cedilla.errors import InputError


def read(path: Path) -> list[Record]:
    return list(read_fasta(path, Findings()))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_records_of_any_file(tmp_path: Path, end: str, last: bool, zipped: bool) -> None:
    lines = ["", ">a the first", "ACGT", "", "ac ", ">b|1", ">c", "N", "N"]
    content = (end.join(lines) + end * last).encode()
    (tmp_path / "x").write_bytes(gzip.compress(content) if zipped else content)
    records = read(tmp_path / "x")
    assert [(r.id, r.sequence) for r in records] == [("a", "ACGTac"), ("b|1", ""), ("c", "NN")]
    assert records[0].where == f"{tmp_path / 'x'} line 2 (record a)"
    assert [records[0].place(i) for i in (0, 3, 4)] == [
        "position 1 (line 3)",
        "position 4 (line 3)",
        "position 5 (line 5)",
    ]


def test_a_name_is_needed_and_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"> \nAC\n>\xff\nAC\n>\xc3\xa9\nA\xff")
    findings = Findings()
    records = list(read_fasta(tmp_path / "x", findings))
    assert [r.id for r in records] == ["", "", "é"]
    assert [str(p) for p in findings.problems("x")] == [
        f"{tmp_path / 'x'} line 3: is not UTF-8 text; save it as UTF-8"
    ]
    assert records[2].sequence == "Aÿ"


def test_a_file_that_breaks_off_names_the_record_and_its_line(
    tmp_path: Path, dna: Callable[..., str]
) -> None:
    lines = ">a\nAC\n>chr7 x\n" + "\n".join(dna(60, seed) for seed in range(500))
    whole = gzip.compress(lines.encode())
    (tmp_path / "x.gz").write_bytes(whole[:-2000])
    with pytest.raises(InputError, match=r"x.gz line \d+ \(record chr7\): the gzip data are cut"):
        read(tmp_path / "x.gz")
