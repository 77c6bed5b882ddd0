"""Genomes stored as one byte a base."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
import textwrap

import numpy as np
import pysam
import pytest

from cedilla.dna.genome_store import CODE, SOFT, open_store
from cedilla.errors import InputError
from cedilla.files import cache_dir

FASTA = ">chr1 a note\r\nACGTnnRU\r\nac\r\n\r\n>chr2\nNN\n>chr3\n>\nTTTT"
LETTERS = "ACGTN\0\0\0acgtn"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))


def text(bases: np.ndarray) -> str:
    return "".join(LETTERS[byte] for byte in bases)


@pytest.mark.parametrize("ending", ["fa", "fa.gz", "fa.bgz", "fa.xz"])
def test_fasta_is_stored_whatever_its_compression(tmp_path, ending, capsys):
    path = tmp_path / f"a.{ending}"
    compress = {"fa": bytes, "fa.gz": gzip.compress, "fa.xz": lzma.compress, "fa.bgz": bytes}
    path.write_bytes(compress[ending](FASTA.encode()))
    if ending == "fa.bgz":
        (tmp_path / "plain").write_bytes(path.read_bytes())
        pysam.tabix_compress(str(tmp_path / "plain"), str(path), force=True)
    for _ in range(2):
        store = open_store(path)
        assert store.names == ("chr1", "chr2", "chr3", "4")
        assert store.lengths.tolist() == [10, 2, 0, 4]
        assert store.offsets.tolist() == [0, 10, 12, 12]
        assert text(store.bases) == "ACGTnnNTacNNTTTT"
        assert store.runs.tolist() == [[0, 4], [7, 10], [12, 16]]
        assert store.known == 11
        # Said each time, not only when the file is stored.
        assert "1 IUPAC codes such as R or Y in 1 records (the first in record chr1)" in (
            capsys.readouterr().err
        )
    assert (store.bases[8] & CODE, store.bases[8] & SOFT) == (0, SOFT)
    assert len(list(cache_dir().rglob("*.bases"))) == 1


def test_blocks_may_break_anywhere(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    contigs = {
        f"c{i}": "".join(rng.choice(list("ACGTNacgtn"), rng.integers(0, 60))) for i in range(9)
    }
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{n} >no header\n{s[:20]}\n{s[20:]}\n" for n, s in contigs.items()))
    for size in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr("cedilla.dna.genome_store._BLOCK", size)
        os.utime(path, (0, size))
        store = open_store(path)
        found = {
            name: text(store.bases[o : o + n])
            for name, o, n in zip(store.names, store.offsets, store.lengths, strict=True)
        }
        assert found == contigs
        inside = np.zeros(len(store.bases), dtype=bool)
        for start, end in store.runs:
            inside[start:end] = True
        assert np.array_equal(inside, (store.bases & CODE) < 4)
        # A run never goes on from one contig into the next.
        ends = store.offsets[1:]
        assert not any(((store.runs[:, 0] < e) & (store.runs[:, 1] > e)).any() for e in ends)


def test_a_changed_file_and_a_damaged_store_are_stored_anew(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text(">a\nACGT\n")
    assert text(open_store(path).bases) == "ACGT"
    path.write_text(">a\nACGG\n")
    assert text(open_store(path).bases) == "ACGG"
    for kind, damage in (("bases", b"\0"), ("json", b"{")):
        for stored in cache_dir().rglob(f"*.{kind}"):
            stored.write_bytes(damage)
        assert text(open_store(path).bases) == "ACGG"


def test_all_that_is_wrong_with_a_file_is_one_error(tmp_path):
    path = tmp_path / "a.fa"
    records = "".join(f">r{i}\nAC\nG*TX>\n" for i in range(1000))
    path.write_text(f">fine\nACGT\n{records}>fine\nA\n>r7\nA\n")
    with pytest.raises(InputError) as caught:
        open_store(path)
    problems = list(map(str, caught.value.problems))
    assert f"{path} record r0: '*' at position 4 is no nucleotide code; use A, C" in problems[0]
    assert sum("(1,000 in all)" in p for p in problems) == 1
    assert [p.split(": ")[0] for p in problems if "same name" in p] == [
        f"{path} record {name}" for name in ("fine", "r7")
    ]
    assert len(problems) < 10
    assert not list(cache_dir().rglob("*.*"))


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 20_000))
    whole = f">a\n{letters}\n".encode()
    (tmp_path / "plain").write_bytes(whole)
    pysam.tabix_compress(str(tmp_path / "plain"), str(tmp_path / "c.fa.gz"), force=True)
    cut = {"a.fa.gz": gzip.compress(whole), "b.fa.xz": lzma.compress(whole)}
    for name, content in cut.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    blocks = (tmp_path / "c.fa.gz").read_bytes()
    (tmp_path / "c.fa.gz").write_bytes(blocks[:-28])  # all but bgzip's end mark
    (tmp_path / "d.fa").write_bytes(b">" + b"x" * (2 << 20))
    for name in (*cut, "c.fa.gz", "d.fa"):
        with pytest.raises(InputError, match=rf"{name}: is cut off, damaged or no FASTA file"):
            open_store(tmp_path / name)
    assert not list(cache_dir().rglob("*.*"))


@pytest.mark.parametrize("content", ["", ">a\nNNNN\n", "no fasta\n", ">a\n"])
def test_a_file_without_bases_is_refused(tmp_path, content):
    (tmp_path / "a.fa").write_text(content)
    with pytest.raises(InputError, match="holds no bases; is it a FASTA file"):
        open_store(tmp_path / "a.fa")


def test_bases_before_the_first_header_are_refused(tmp_path):
    (tmp_path / "a.fa").write_text("ACGT\n>a\nACGT\n")
    with pytest.raises(InputError, match="line 1: is no header"):
        open_store(tmp_path / "a.fa")


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file: cannot hold .*; set CEDILLA_CACHE to a folder"):
        open_store(tmp_path / "a.fa")
    with pytest.raises(InputError, match=r"none\.fa: cannot be read \(No such file"):
        open_store(tmp_path / "none.fa")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_genome(tmp_path):
    """200 million bases are stored in less than 60 MB, and drawn from in less than 100 MB."""
    path = tmp_path / "large.fa.gz"
    rows = gzip.compress((b"ACGTTGCA" * 10 + b"\n") * 12_500, compresslevel=1)
    contigs = [gzip.compress(b">c%d\n" % i) + rows * 50 for i in range(4)]
    path.write_bytes(b"".join(contigs))
    script = textwrap.dedent("""
        import sys
        import numpy as np
        from cedilla.training.genomes import WindowSampler, read_genomes

        def peak():
            status = open("/proc/self/status").read()
            return int(status.split("VmHWM:")[1].split()[0]) // 1024

        before = peak()
        sampler = WindowSampler(read_genomes(sys.argv[1:]), length=600)
        print(peak() - before)
        sampler.draw(100, np.random.default_rng(0))
        print(peak() - before, sampler.genomes[0].known)
    """)
    words = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    stored, drawn, known = map(int, done.stdout.split())
    assert known == 200_000_000
    assert stored < 60
    assert drawn < 100
