"""BED: intervals of a genome, 0-based and half-open, on either strand, or refused by line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pysam
import pytest

from cedilla.dna.bed import open_genome, read_bed
from cedilla.dna.records import Findings
from cedilla.errors import InputError

CHR1 = "ACGTTGCAACGGTTAACCGGatNRy"


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1 first\n{CHR1[:10]}\n{CHR1[10:20]}\n{CHR1[20:]}\n>chrUn_1\nACGT\n")
    return path


def read(bed: str, genome: Path) -> tuple[list[tuple[str, str]], list[str]]:
    path = genome.with_name("a.bed")
    path.write_text(bed)
    findings = Findings()
    with open_genome(genome) as opened:
        rows = [(r.id, r.sequence) for r in read_bed(path, opened, findings)]
    return rows, [str(p) for p in findings.problems("a.bed")]


def test_intervals_are_half_open_and_stranded(genome: Path) -> None:
    bed = "# made by hand\ntrack name=x\nbrowser position chr1\n\n"
    bed += "chr1\t0\t4\nchr1\t2\t9\tpeak1\t0\t-\r\nchr1 20 25 . 0 +\nchr1\t20\t25\t.\t0\t-\n"
    rows, problems = read(bed, genome)
    assert rows == [
        ("chr1:0-4", "ACGT"),
        ("peak1", "TTGCAAC"),
        ("chr1:20-25(+)", "atNRy"),
        ("chr1:20-25(-)", "NNNAT"),
    ]
    assert not problems


def test_what_the_genome_lacks_is_refused_by_line(genome: Path) -> None:
    bed = "1\t0\t4\nchr2\t0\t4\nchr1\t5\t26\nchr1\t4\t4\nchr1\tx\t4\nchr1\t0\t4\ta\t0\t?\nchr1\t1\n"
    rows, problems = read(bed, genome)
    path = genome.with_name("a.bed")
    assert not rows
    assert [p.removeprefix(f"{path} ") for p in problems] == [
        "line 1: g.fa has no 1; the genome calls it chr1: rename one of the two, names are never "
        "guessed",
        "line 2: g.fa has no chr2; did you mean chr1?",
        "line 3: 5-26 does not lie in chr1, which has 25 bases; BED is 0-based and half-open, with "
        "start < end; is it another build?",
        "line 4: 4-4 does not lie in chr1, which has 25 bases; BED is 0-based and half-open, with "
        "start < end; is it another build?",
        "line 5: 'chr1 x 4' is no interval; BED has chromosome, start and end between tabs",
        "line 7: 'chr1 1' is no interval; BED has chromosome, start and end between tabs",
        "line 6: strand '?' is none of +, - and .; the strand is column 6",
    ]


def test_a_genome_without_an_index_stays_as_it_is(genome: Path) -> None:
    before = set(os.listdir(genome.parent))
    with open_genome(genome) as opened:
        assert opened.lengths == {"chr1": 25, "chrUn_1": 4}
        assert opened.fetch("chr1", 8, 12) == CHR1[8:12]
    assert set(os.listdir(genome.parent)) == before


def test_a_stale_index_is_not_used(genome: Path) -> None:
    pysam.faidx(str(genome))
    os.utime(genome.with_name("g.fa.fai"), (1, 1))
    genome.write_text(">chr1\nAACCGGTT\n")
    with open_genome(genome) as opened:
        assert opened.lengths == {"chr1": 8}
        assert opened.fetch("chr1", 4, 8) == "GGTT"


def test_bgzip_can_be_read_in_the_middle_and_gzip_cannot(genome: Path) -> None:
    bgz, gz = genome.with_name("g.fa.bgz"), genome.with_name("g.fa.gz")
    pysam.tabix_compress(str(genome), str(bgz))
    gz.write_bytes(gzip.compress(genome.read_bytes()))
    with open_genome(bgz) as opened:
        assert opened.fetch("chr1", 8, 12) == CHR1[8:12]
    with pytest.raises(InputError, match="only be read from the start; gunzip it"), open_genome(gz):
        pass


def test_a_genome_that_is_absent_ragged_or_cut_off(genome: Path) -> None:
    with pytest.raises(InputError, match=r"h.fa: not found"), open_genome(genome.with_name("h.fa")):
        pass
    ragged = genome.with_name("r.fa")
    ragged.write_text(">a\nACGT\nACGTACGT\nAC\n")
    with pytest.raises(InputError, match=r"r.fa: cannot be indexed"), open_genome(ragged):
        pass
    pysam.faidx(str(genome))
    genome.write_bytes(genome.read_bytes()[:20])
    os.utime(genome, (1, 1))
    with open_genome(genome) as opened, pytest.raises(InputError, match=r":18-25: cannot be read"):
        opened.fetch("chr1", 18, 25)
    genome.with_name("g.fa.fai").write_text("no index")
    with pytest.raises(InputError, match=r"g.fa.fai: is damaged; delete it"), open_genome(genome):
        pass
