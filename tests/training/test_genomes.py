"""Windows of genomes: held out, and drawn by weight."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from cedilla.dna import alphabet
from cedilla.errors import InputError
from cedilla.training.genomes import Genome, WindowSampler, hold_out, read_genomes


@pytest.fixture
def genome(tmp_path, monkeypatch):
    """genome("ACGT", "TTT", weight=2): a genome of contigs c0, c1, … read from a FASTA file."""
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))

    def make(*contigs: str, weight: float = 1.0, name: str = "g.fa") -> Genome:
        path = tmp_path / name
        path.write_text("".join(f">c{i}\n{bases}\n" for i, bases in enumerate(contigs)))
        (found,) = read_genomes([f"{path}={weight}"])
        return found

    return make


def text(window: np.ndarray) -> str:
    return "".join(alphabet.BASES[code] for code in window)


def drawn(sampler: WindowSampler, n: int = 400) -> list[str]:
    return [text(w) for w in sampler.draw(n, np.random.default_rng(0)).codes]


def runs(genomes: list[Genome]) -> list[list[str]]:
    """The runs of each genome, as text."""
    return [
        ["".join("ACGTN"[b & 7] for b in g.store.bases[a:z]) for a, z in g.runs] for g in genomes
    ]


def test_the_end_of_every_contig_is_held_out(genome):
    genomes = [genome("ACGTACGTAC", "GGGGT", name="a.fa"), genome("TTTTNTTTTT", name="b.fa")]
    train, held_out = hold_out(genomes, share=0.2)
    assert runs(train) == [["ACGTACGT", "GGGG"], ["TTTT", "TTT"]]
    assert runs(held_out) == [["AC", "T"], ["TT"]]
    assert [g.known for g in train] == [12, 7]


def test_contigs_and_regions_are_held_out(genome):
    genomes = [genome("ACGTACGTAC", "GGGGT", "CC", name="a.fa"), genome("TTNTT", name="b.fa")]
    train, held_out = hold_out(genomes, ["c0:3-5", "c0:5-5", "c1", "c0:4-4"])
    assert runs(train) == [["AC", "CGTAC", "CC"], ["TT"]]
    assert runs(held_out) == [["GTA", "GGGGT"], ["TT"]]
    train, held_out = hold_out(genomes, ["c2:2-", "c1:1-2"])
    assert runs(train) == [["ACGTACGTAC", "GGT", "C"], ["TT", "TT"]]
    assert runs(held_out) == [["GG", "C"], []]


def test_commas_in_regions_and_colons_in_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.fa").write_text(f">HLA:1-2\nACG\n>chrX\n{'A' * 2000}CC{'G' * 500}\n")
    genomes = read_genomes([str(tmp_path / "a.fa")])
    assert runs(hold_out(genomes, ["HLA:1-2"])[1]) == [["ACG"]]
    assert runs(hold_out(genomes, ["HLA:1-2:2-3", "chrX:2,001-2,002"])[1]) == [["CG", "CC"]]


def test_all_impossible_names_are_one_error(genome):
    genomes = [genome("ACGTACGTAC", "GG", name="a.fa")]
    names = ["c7", "c1:0-1", "c1:2-3", "c0:5-4", "chr1", "c0"]
    with pytest.raises(InputError) as caught:
        hold_out(genomes, names)
    problems = list(map(str, caught.value.problems))
    assert problems[0] == "c7: is in no genome; did you mean c1 or c0?"
    assert "chr1: is in no genome" in problems[-1]
    assert [p.where for p in caught.value.problems] == ["c7", "c1:0-1", "c1:2-3", "c0:5-4", "chr1"]
    assert "is no region of c1, which has 2 bases in a.fa; write CONTIG:FIRST-LAST" in problems[1]


def test_parts_share_no_base_and_lose_none(genome):
    rng = np.random.default_rng(0)
    contigs = ["".join(rng.choice(list("ACGTN"), 300, p=[0.24] * 4 + [0.04])) for _ in range(3)]
    whole = genome(*contigs)
    for _ in range(20):
        ends = np.sort(rng.integers(1, 301, (4, 2)), axis=1)
        names = [f"c{rng.integers(3)}:{a}-{b}" for a, b in ends]
        marks = np.zeros((2, len(whole.store.bases)), dtype=int)
        for mark, (part,) in zip(marks, hold_out([whole], names), strict=True):
            for a, b in part.runs:
                mark[a:b] += 1
        known = (whole.store.bases & 7) < 4
        held = np.zeros(900, dtype=bool)
        for name in names:
            contig, region = name[1:].split(":")
            a, b = map(int, region.split("-"))
            held[int(contig) * 300 + a - 1 : int(contig) * 300 + b] = True
        assert np.array_equal(marks[0], known & ~held)
        assert np.array_equal(marks[1], known & held)


@pytest.mark.parametrize(("overlap", "start"), [(50, 100), (2, 3), (0, 0), (3, 1)])
def test_every_window_without_n_can_come_up_on_either_strand(genome, overlap, start):
    contigs = ["ACGGTTGACANNCAGTNCAGGNTTTCC", "GATTACCAGT"]
    sampler = WindowSampler([genome(*contigs)], length=4, overlap=overlap, start=start)
    windows = [c[i : i + 4] for c in contigs for i in range(len(c) - 3)]
    whole = {w for w in windows if "N" not in w}
    assert set(drawn(sampler, 4000)) == {*whole, *map(alphabet.reverse_complement, whole)}
    forward = WindowSampler([genome(*contigs)], length=4, strands=False)
    assert set(drawn(forward, 4000)) == whole


def test_soft_masked_bases_go_with_their_strand(genome):
    sampler = WindowSampler([genome("AAacGG")], length=6)
    windows = sampler.draw(50, np.random.default_rng(0))
    found = {(text(c), tuple(s.tolist())) for c, s in zip(windows.codes, windows.soft, strict=True)}
    soft = (False, False, True, True, False, False)
    assert found == {("AAACGG", soft), ("CCGTTT", soft)}
    assert windows.codes.dtype == np.uint8
    one = WindowSampler([genome("aaacGG")], length=6).draw(50, np.random.default_rng(0))
    assert {text(c): s.sum() for c, s in zip(one.codes, one.soft, strict=True)}["CCGTTT"] == 4
    assert not one.soft[(one.codes[:, 0] == 1), 0].any()


def test_runs_are_drawn_by_their_chunks(genome):
    """Chunks of 10 + 2 bases that share 3: a run of r bases has (r - 3) / 9 of them, rounded up."""
    contigs = ["A" * 66, "C" * 12, "G" * 10]  # 7, 1 and 1 chunks; a window of G at least fits
    sampler = WindowSampler([genome(*contigs)], length=10, overlap=3, start=2, strands=False)
    counts = Counter(w[0] for w in drawn(sampler, 9000))
    for base, chunks in (("A", 7), ("C", 1), ("G", 1)):
        assert counts[base] / 9000 == pytest.approx(chunks / 9, abs=0.02)


def test_windows_within_a_run_come_up_alike(genome):
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 400))
    sampler = WindowSampler([genome(bases)], length=20, overlap=8, start=5, strands=False)
    starts = np.array([bases.index(w) for w in drawn(sampler, 20_000)])
    counts = np.histogram(starts, bins=10, range=(10, 370))[0]
    assert counts.min() > 0.85 * counts.max()


def test_a_weight_is_the_share_of_windows_however_many_n(genome):
    genomes = [
        genome("A" * 900, "C" * 100, weight=3, name="a.fa"),
        genome("G" * 40 + "N" * 5000, weight=1, name="b.fa"),
    ]
    counts = Counter(w[0] for w in drawn(WindowSampler(genomes, length=10, strands=False), 8000))
    assert counts["G"] / 8000 == pytest.approx(0.25, abs=0.02)
    # Chunks of 110 bases that share 50: 15 of the one contig, 1 of the other.
    assert counts["C"] / (8000 - counts["G"]) == pytest.approx(1 / 16, abs=0.01)


def test_some_rows_of_a_draw_are_those_of_the_whole(genome):
    rng = np.random.default_rng(5)
    contigs = ["".join(rng.choice(list("ACGTacgtN"), 500)) for _ in range(2)]
    sampler = WindowSampler([genome(*contigs)], length=6)
    whole = sampler.draw(64, np.random.default_rng(7))
    for rows in (slice(0, 20), slice(20, 64), slice(30, 30)):
        part = sampler.draw(64, np.random.default_rng(7), rows)
        assert np.array_equal(part.codes, whole.codes[rows])
        assert np.array_equal(part.soft, whole.soft[rows])
    after, other = np.random.default_rng(7), np.random.default_rng(7)
    sampler.draw(64, after)
    sampler.draw(64, other, slice(3, 5))
    assert after.random() == other.random()
    assert not np.array_equal(sampler.draw(64, np.random.default_rng(8)).codes, whole.codes)


def test_genomes_without_a_window_are_refused_or_named(genome, capsys):
    short = genome("ACGTNACGTN", name="short.fa")
    with pytest.raises(InputError, match=r"no held-out end has 5 bases without N; lower --tokens"):
        WindowSampler([short], length=5, part="held-out end")
    with pytest.raises(InputError, match="an overlap of 105 is impossible"):
        WindowSampler([short], length=5, overlap=105)
    assert capsys.readouterr().err == ""
    long = genome("A" * 20, name="long.fa")
    nothing = hold_out([long], ["c0"])[0]
    sampler = WindowSampler([short, long, *nothing], length=5, strands=False)
    assert set(drawn(sampler)) == {"AAAAA"}
    note = capsys.readouterr().err
    assert "1 of 3 genomes have no 5 bases without N" in note
    assert "short.fa" in note


def test_haplotypes_are_drawn_in_place_of_the_reference(genome, tmp_path):
    """A person of two haplotypes, one with 30 bases less, and one base changed in the other."""
    bases = "".join(np.random.default_rng(2).choice(list("ACGT"), 300)) + "N" * 10 + "ACGT" * 10
    genome(bases)
    header = (
        "##fileformat=VCFv4.3\n##contig=<ID=c0>\n"
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tanna\n"
    )
    base = "A" if bases[99] != "A" else "C"
    rows = [(100, bases[99], base, "1|0"), (251, bases[250:281], bases[250], "0|1")]
    lines = [f"c0\t{p}\t.\t{r}\t{a}\t.\t.\t.\tGT\t{g}\n" for p, r, a, g in rows]
    (tmp_path / "calls.vcf").write_text(header + "".join(lines))
    (people,) = read_genomes([f"{tmp_path / 'g.fa'}::{tmp_path / 'calls.vcf'}"])
    assert (people.name, len(people.files)) == ("g.fa::calls.vcf", 2)
    assert people.weight == 340
    haplotypes = [bases[:99] + base + bases[100:300], bases[:251] + bases[281:300]]
    ends = [bases[310:], bases[310:]]
    sampler = WindowSampler([people], length=25, strands=False)
    windows = drawn(sampler, 3000)
    allowed = {s[i : i + 25] for s in (*haplotypes, *ends) for i in range(len(s) - 24)}
    assert set(windows) <= allowed
    first = {haplotypes[0][i : i + 25] for i in range(75, 100)}
    second = {haplotypes[1][i : i + 25] for i in range(227, 251)}
    assert first <= set(windows)
    # The end of the run is reached although bases are deleted before it.
    assert haplotypes[1][-25:] in windows
    assert second & set(windows)
    held = WindowSampler(hold_out([people], ["c0:90-120"])[1], length=25, strands=False)
    inside = {s[i : i + 25] for s in haplotypes for i in range(89, 96)}
    assert set(drawn(held, 300)) == inside


def test_200_windows_are_drawn_in_2_milliseconds(genome):
    sampler = WindowSampler([genome("ACGTTGCA" * 100_000)], length=600)
    rng, times = np.random.default_rng(0), []
    for _ in range(30):
        clock = time.perf_counter()
        sampler.draw(200, rng)
        times.append(time.perf_counter() - clock)
    assert min(times) < 2e-3
