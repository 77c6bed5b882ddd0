"""Inputs: told apart by content, never by name, and refused with what they are."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cedilla.dna.inputs import open_input, recognise
from cedilla.dna.records import Findings
from cedilla.errors import InputError


def rows(input: Any, genome: Path | None = None) -> list[tuple[str, str]]:
    """The records, passed over twice."""
    with open_input(input, genome=genome, sequence="sequence", id=None) as (_, source):
        first, again = ([(r.id, r.sequence) for r in source(Findings())] for _ in range(2))
    assert first == again
    return first


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "format"),
    [
        (b">a\nAC\n", "FASTA"),
        (b"\xef\xbb\xbf\r\n>a\r\nAC", "FASTA"),
        (b"#made\ntrack x\nchr1\t1\t2\n", "BED"),
        (b"sequence,label\nAC,1\n", "table"),
        (b"id\tfrom\tto\tsequence\na\t1\t2\tAC\n", "table"),
    ],
)
def test_formats_are_told_by_content(
    tmp_path: Path, content: bytes, format: str, zipped: bool
) -> None:
    path = tmp_path / "misnamed.xlsx"
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert recognise(path) == format


@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_is_read(tmp_path: Path, zipped: bool) -> None:
    genome = tmp_path / "g.fa"
    genome.write_text(">chr1\nACGT\n")
    files = {"f": b">a\nAC\n>b\nGT\n", "t": b"id,sequence\na,AC\nb,GT\n"}
    files["b"] = b"chr1\t0\t2\ta\nchr1\t2\t4\tb\n"
    for name, content in files.items():
        (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
        assert rows(tmp_path / name, genome if name == "b" else None) == [("a", "AC"), ("b", "GT")]
    pd.DataFrame({"id": ["a", "b"], "sequence": ["AC", "GT"]}).to_parquet(tmp_path / "p")
    assert rows(str(tmp_path / "p")) == [("a", "AC"), ("b", "GT")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b"@r1\nACGT\n+\nIIII\n", "is FASTQ or SAM"),
        (b"PK\x03\x04...", "is an Excel workbook or a zip archive"),
        (b"##fileformat=VCFv4.2\n", "is VCF"),
        (b"chr1\t1\t2\n", "is BED: its sequences stand in a genome; pass --genome"),
    ],
)
def test_other_files_are_refused_for_what_they_are(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError) as caught:
        rows(tmp_path / "x")
    assert said in str(caught.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "seqs.fa.gz").touch()
    with pytest.raises(InputError, match=r"does not exist; did you mean .*seqs\.fa\.gz\?"):
        rows(tmp_path / "seqs.fa")
    with pytest.raises(InputError, match="is no regular file"):
        rows(tmp_path)
    with pytest.raises(InputError, match="is a sequence, not a path"):
        rows("ACGT" * 100)


def test_a_genome_goes_with_bed_only(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\nAC\n")
    for input in (tmp_path / "x.fa", ["ACGT"]):
        with pytest.raises(InputError, match="goes with a BED file only"):
            rows(input, tmp_path / "x.fa")


@pytest.mark.parametrize(
    "items",
    [
        [("a", "AC"), ("2", " GT\n")],
        {"a": "AC", "2": "GT"},
        (pair for pair in (("a", "AC"), [2, "GT"])),
        pd.Series(["AC", "GT"], ["a", "2"]).items(),
    ],
)
def test_pairs_of_python(items: Iterable[Any]) -> None:
    assert rows(items) == [("a", "AC"), ("2", "GT")]


@pytest.mark.parametrize("items", [["AC", "GT"], iter(["AC", "GT"]), pd.Series(["AC", "GT"])])
def test_bare_sequences_are_numbered(items: Iterable[str]) -> None:
    assert rows(items) == [("1", "AC"), ("2", "GT")]


def test_what_is_no_sequence_is_found() -> None:
    findings = Findings()
    items = ["AC", 7, ("a", None), ("a", "b", "c"), object()]
    with open_input(items, genome=None, sequence="", id=None) as (name, source):
        assert [r.where for r in source(findings)] == ["sequence 1"]
    assert [p.where for p in findings.problems(name)] == [f"sequence {n}" for n in (2, 3, 4, 5)]
    with (
        pytest.raises(InputError, match="int is neither a path nor an iterable"),
        open_input(7, genome=None, sequence="", id=None),  # type: ignore[arg-type]
    ):
        pass
