"""Windows of genomes: read, split, drawn and masked."""

from __future__ import annotations

import gzip
import math
from collections import Counter

import numpy as np
import pytest
import torch

from cedilla.dna import alphabet
from cedilla.dna.tokenizer import CLS, MASK, Tokenizer
from cedilla.errors import InputError, MissingData
from cedilla.training.genomes import (
    Genome,
    WindowSampler,
    find_genome,
    mask_tokens,
    read_genomes,
    split,
    tokens_of,
)

TOKENIZER = Tokenizer(3)


def genome(*contigs: str, weight: float = 1.0) -> Genome:
    return Genome("g", tuple(map(alphabet.encode, contigs)), weight)


def text(window: np.ndarray) -> str:
    return "".join(alphabet.BASES[code] for code in window)


def test_fasta_is_read_plain_or_gzipped(tmp_path):
    fasta = ">chr1 note\nACGTnnRU\nac\n>chr2\nTTTT\n"
    (tmp_path / "a.fa").write_text(fasta)
    (tmp_path / "b.fa.gz").write_bytes(gzip.compress(fasta.encode()))
    for name in ("a.fa", "b.fa.gz"):
        (found,) = read_genomes([str(tmp_path / name)])
        assert [text(c) for c in found.contigs] == ["ACGTNNNTAC", "TTTT"]
        assert found.name == name
        assert found.known == found.weight == 11
    (found,) = read_genomes([f"{tmp_path / 'a.fa'}=2.5"])
    assert found.weight == 2.5


def test_a_genome_is_looked_for_here_then_in_the_data_folders(tmp_path, monkeypatch):
    for folder in ("here", "named", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.fa").touch()
        (tmp_path / folder / "all.fa").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CEDILLA_DATA", str(tmp_path / "data"))
    named = tmp_path / "named"
    assert find_genome("all.fa=3", named)[0].resolve() == tmp_path / "here" / "all.fa"
    assert find_genome("named.fa", named) == (named / "named.fa", None)
    assert find_genome("data.fa=2", named) == (tmp_path / "data" / "data.fa", 2.0)
    with pytest.raises(MissingData, match=r"none\.fa: not found"):
        find_genome("none.fa", named)


@pytest.mark.parametrize("weight", ["heavy", "0", "-1", "nan", "inf"])
def test_a_weight_that_is_no_number_above_0_is_refused(tmp_path, weight):
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(InputError, match=f"'{weight}' is no weight"):
        read_genomes([f"{tmp_path / 'a.fa'}={weight}"])


def test_all_missing_genomes_are_named_at_once(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(MissingData) as caught:
        read_genomes(["none.fa", str(tmp_path / "a.fa"), "neither.fa=2"])
    assert [p.where for p in caught.value.problems] == ["none.fa", "neither.fa"]


def test_the_problems_of_all_sources_are_one_error(tmp_path):
    records = "".join(f">r{i}\nAC\nG*TX\n" for i in range(1000))
    (tmp_path / "a.fa").write_text(f">fine\nACGT\n{records}")
    (tmp_path / "b.fa").write_text(">b\nNNNN\n")
    sources = [str(tmp_path / "a.fa"), f"{tmp_path / 'b.fa'}", "none.fa=0"]
    with pytest.raises(InputError) as caught:
        read_genomes(sources)
    # A step of an experiment may be left out for want of data, not for bad data.
    assert not isinstance(caught.value, MissingData)
    problems = list(map(str, caught.value.problems))
    assert f"{tmp_path / 'a.fa'} record r0: '*' at position 4 is no nucleotide code" in problems[0]
    for what in (
        "(1,000 in all)",
        "b.fa: holds no bases",
        "'0' is no weight",
        "none.fa: not found",
    ):
        assert sum(what in problem for problem in problems) == 1, what
    assert len(problems) < 20


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 200_000))
    whole = gzip.compress(f">a\n{letters}\n".encode())
    (tmp_path / "a.fa.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.fa").write_bytes(b">a\nAC\xffGT\n")
    with pytest.raises(InputError) as caught:
        read_genomes([str(tmp_path / "a.fa.gz"), str(tmp_path / "b.fa")])
    problems = caught.value.problems
    assert [p.where for p in problems] == [str(tmp_path / name) for name in ("a.fa.gz", "b.fa")]
    assert all("is cut off, damaged" in p.what for p in problems)


def test_ambiguous_codes_are_counted_aloud(tmp_path, capsys):
    path = tmp_path / "a.fa"
    path.write_text(">a\nACGTN\n>b\nARYA\n>c\nwA\n")
    (found,) = read_genomes([str(path)])
    assert [text(c) for c in found.contigs] == ["ACGTN", "ANNA", "NA"]
    note = capsys.readouterr().err
    assert f"{path}: 3 IUPAC codes" in note
    assert "in 2 records (the first in record b)" in note
    path.write_text(">a\nACGTNU\n")
    read_genomes([str(path)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", ">a\nNNNN\n", "no fasta\n"])
def test_a_file_without_bases_is_refused(tmp_path, content):
    (tmp_path / "a.fa").write_text(content)
    with pytest.raises(InputError, match="holds no bases"):
        read_genomes([str(tmp_path / "a.fa")])


def test_the_end_of_every_contig_is_held_out():
    train, held_out = split([genome("ACGTACGTAC", "GGGGT"), genome("TTTTTTTTTT")], 0.2)
    assert [[text(c) for c in g.contigs] for g in train] == [["ACGTACGT", "GGGG"], ["TTTTTTTT"]]
    assert [[text(c) for c in g.contigs] for g in held_out] == [["AC", "T"], ["TT"]]


def test_windows_are_free_of_n_and_of_both_strands():
    sampler = WindowSampler([genome("AAAAAAANNNNAAAAAAAA")], length=5)
    windows = {text(w) for w in sampler.draw(200, np.random.default_rng(0))}
    assert windows == {"AAAAA", "TTTTT"}
    # Every start is drawn, the first and the last among them.
    sampler = WindowSampler([genome("ACGGTTGACA")], length=4)
    drawn = {text(w) for w in sampler.draw(400, np.random.default_rng(0))}
    starts = ["ACGGTTGACA"[i : i + 4] for i in range(7)]
    assert drawn == {*starts, *map(alphabet.reverse_complement, starts)}


def test_genomes_are_drawn_by_weight_and_contigs_by_length():
    sampler = WindowSampler(
        [genome("A" * 900, "C" * 100, weight=3), genome("AC" * 50, weight=1)], length=10
    )
    # Without a regard to strands: A or T alone, C or G alone, or mixed.
    drawn = Counter(
        "".join(sorted(set(text(w)).intersection("AC") or set(text(w)).intersection("GT")))
        .replace("G", "C")
        .replace("T", "A")
        for w in sampler.draw(4000, np.random.default_rng(0))
    )
    mixed = sum(n for kind, n in drawn.items() if len(kind) == 2)
    assert mixed / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn["C"] / (4000 - mixed) == pytest.approx(0.1, abs=0.03)


def test_a_weight_counts_per_window_tried():
    """The half of the first genome's windows is unusable, and its share falls to a third."""
    sampler = WindowSampler([genome("A" * 509 + "N" * 500), genome("C" * 1009)], length=10)
    drawn = Counter(text(w)[0] for w in sampler.draw(4000, np.random.default_rng(0)))
    assert (drawn["A"] + drawn["T"]) / 4000 == pytest.approx(1 / 3, abs=0.03)


def test_the_same_seed_draws_the_same_windows():
    sampler = WindowSampler([genome("ACGGTTGACATTGCA" * 20)], length=12)
    draws = [sampler.draw(8, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_genomes_without_a_window_are_refused():
    with pytest.raises(InputError, match=r"no held-out end has 10 bases; lower --tokens"):
        WindowSampler([genome("ACGT")], length=10, part="held-out end")
    with pytest.raises(InputError, match="hardly a window is free of N"):
        WindowSampler([genome("ACGN" * 9)], length=5).draw(1, np.random.default_rng(0))


def test_windows_become_the_tokenizers_ids():
    windows = np.stack([alphabet.encode(s) for s in ("ACGTTGACA", "TTTCCCGGG")])
    expected, _ = TOKENIZER.encode(["ACGTTGACA", "TTTCCCGGG"])
    assert torch.equal(tokens_of(windows, TOKENIZER), expected)


@pytest.mark.parametrize("k", [1, 3])
def test_fifteen_percent_are_corrupted_in_the_published_shares(k):
    rng, tokenizer = np.random.default_rng(0), Tokenizer(k)
    first, count = len(tokenizer.special), 4**k
    ids = torch.from_numpy(rng.integers(first, first + count, (500, 400)))
    ids[:, 0] = CLS
    corrupted, chosen, masked = mask_tokens(ids, tokenizer, rng)
    n = int(chosen.sum())

    def near(found, share, of):
        assert abs(found / of - share) < 4 * math.sqrt(share * (1 - share) / of)

    near(n, 0.15, 500 * 399)
    changed = corrupted != ids
    near(int(masked.sum()), 0.8, n)
    near(int((changed & ~masked).sum()), 0.1, n)
    near(int((chosen & ~changed).sum()), 0.1, n)
    # Nothing else is touched, <cls> least of all.
    assert not (changed & ~chosen).any()
    assert (corrupted[:, 0] == CLS).all()
    assert (corrupted[masked] == MASK).all()
    replaced = corrupted[changed & ~masked]
    # Each other k-mer is as likely; a k-mer is never replaced by itself, nor by anything else.
    assert set(replaced.tolist()) == set(range(first, first + count))
    shift = (replaced - ids[changed & ~masked]) % count
    assert shift.min() == 1
    assert shift.unique().numel() == count - 1
