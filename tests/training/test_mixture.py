"""Mixtures of genomes as they are written: paths, weights, pairs and lists."""

from __future__ import annotations

import pytest

from cedilla.errors import InputError, MissingData
from cedilla.training.genomes import read_genomes


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CEDILLA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.fa").write_text(">a\nACGTN\n")
    (tmp_path / "b.fa").write_text(">b\nACGTACGTACGT\n")


def weights(*sources: str) -> dict[str, float]:
    return {genome.name: genome.weight for genome in read_genomes(sources)}


def test_a_weight_is_the_known_bases_unless_it_is_given():
    assert weights("a.fa", "b.fa") == {"a.fa": 4, "b.fa": 12}
    assert weights("a.fa=2.5", "b.fa=1e-3") == {"a.fa": 2.5, "b.fa": 0.001}


def test_a_path_may_hold_an_equals_sign(tmp_path):
    (tmp_path / "run=3").mkdir()
    (tmp_path / "run=3" / "c.fa").write_text(">c\nACGT\n")
    assert weights("run=3/c.fa") == {"c.fa": 4}
    assert weights("run=3/c.fa=7") == {"c.fa": 7}


def test_a_genome_is_looked_for_here_then_in_the_data_folders(tmp_path, monkeypatch):
    for folder in ("named", "data"):
        (tmp_path / folder).mkdir()
        for name in (folder, "a"):
            (tmp_path / folder / f"{name}.fa").write_text(f">{folder}\nACGT\n")
    monkeypatch.setenv("CEDILLA_DATA", str(tmp_path / "data"))
    found = read_genomes(["a.fa", "named.fa", "data.fa"], tmp_path / "named")
    assert [genome.contigs for genome in found] == [("a",), ("named",), ("data",)]
    with pytest.raises(MissingData, match=r"none\.fa: not found"):
        read_genomes(["none.fa"], tmp_path / "named")


def test_a_list_names_genomes_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "c.fa").write_text(">c\nAC\n")
    (folder / "some.tsv").write_text("# species\tweight\nc.fa\t3\n\n../a.fa\t1 # small\n")
    (folder / "plain.txt").write_text("c.fa\n../a.fa\n")
    assert weights("lists/some.tsv") == {"c.fa": 3, "a.fa": 1}
    assert weights("lists/some.tsv", "b.fa=2") == {"c.fa": 3, "a.fa": 1, "b.fa": 2}
    assert weights("lists/plain.txt", "b.fa") == {"c.fa": 2, "a.fa": 4, "b.fa": 12}
    # A list's own weight is shared out by the weights in it, or by known bases.
    assert weights("lists/some.tsv=8", "b.fa=2") == {"c.fa": 6, "a.fa": 2, "b.fa": 2}
    assert weights("lists/plain.txt=3") == {"c.fa": 1, "a.fa": 2}


@pytest.mark.parametrize("weight", ["heavy", "0", "-1", "nan", "inf"])
def test_a_weight_that_is_no_number_above_0_is_refused(tmp_path, weight):
    with pytest.raises(InputError, match=f"'{weight}' is no weight"):
        read_genomes([f"a.fa={weight}"])
    (tmp_path / "l.txt").write_text(f"a.fa\t{weight}\n")
    with pytest.raises(InputError, match=rf"l\.txt line 1: '{weight}' is no weight"):
        read_genomes(["l.txt"])


def test_a_weight_for_some_genomes_alone_is_refused(tmp_path):
    with pytest.raises(InputError, match="some genomes have a weight and others none; give every"):
        read_genomes(["a.fa=2", "b.fa"])
    (tmp_path / "l.txt").write_text("a.fa\t2\nb.fa\n")
    with pytest.raises(InputError, match=r"l\.txt: some genomes have a weight"):
        read_genomes(["l.txt"])


def test_all_missing_genomes_are_named_at_once(tmp_path):
    (tmp_path / "l.txt").write_text("a.fa\nnowhere.fa\n")
    with pytest.raises(MissingData) as caught:
        read_genomes(["none.fa", "a.fa", "neither.fa=2", "b.fa::calls.vcf", "l.txt"])
    assert [p.where for p in caught.value.problems] == [
        "none.fa",
        "neither.fa",
        "b.fa::calls.vcf",
        "l.txt line 2",
    ]


def test_the_problems_of_all_sources_are_one_error(tmp_path):
    records = "".join(f">r{i}\nAC\nG*TX\n" for i in range(1000))
    (tmp_path / "bad.fa").write_text(f">fine\nACGT\n{records}")
    (tmp_path / "n.fa").write_text(">b\nNNNN\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    sources = ["bad.fa", "n.fa", "none.fa=0", "a.fa::b::c", "empty.txt"]
    with pytest.raises(InputError) as caught:
        read_genomes(sources)
    # A step of an experiment may be left out for want of data, not for bad data.
    assert not isinstance(caught.value, MissingData)
    problems = list(map(str, caught.value.problems))
    for what in (
        "record r0: '*' at position 4 is no nucleotide code",
        "(1,000 in all)",
        "n.fa: holds no bases",
        "'0' is no weight",
        "none.fa: not found",
        "a.fa::b::c: has 2 times '::'; write reference.fa::calls.vcf.gz",
        "empty.txt: lists no genomes",
    ):
        assert sum(what in problem for problem in problems) == 1, what
    assert len(problems) < 20
