"""The first pass: everything counted, every problem of every record at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cedilla.dna.fasta import read_fasta
from cedilla.dna.records import Findings, Record, Source
from cedilla.errors import InputError
from cedilla.inference.survey import Reading, Survey, survey
from cedilla.inference.tiles import Tiling, cut

TILING = Tiling(k=3, capacity=10, overlap=2)


def source_of(*pairs: tuple[str, str]) -> Source:
    def records(findings: Findings) -> Iterator[Record]:
        for number, (id, bases) in enumerate(pairs, start=1):
            if id == "cut off":
                raise InputError.one(f"x line {number}", "is cut off")
            yield Record(where=f"x line {number}", id=id, sequence=bases)

    return records


def counted(tiling: Tiling, *sequences: str) -> Survey:
    pairs = [(str(i), bases) for i, bases in enumerate(sequences)]
    return survey(source_of(*pairs), "x", tiling)


@pytest.mark.parametrize("strands", ["forward", "both"])
def test_everything_is_counted_as_it_will_be_read(strands: str) -> None:
    tiling = Tiling(k=3, capacity=10, overlap=2, strands=strands)
    sequences = ["ACGTAC", "acguNryA", "ACG" * 10, "ACG" * 10 + "A", "ACGT" * 30, "N"]
    found = counted(tiling, *sequences)
    tiles = [
        tile
        for id, bases in Reading(source_of(*((s, s) for s in sequences)), "x")
        for tile in cut(id, bases, tiling)
    ]
    assert found.records == 6
    assert found.bases == sum(map(len, sequences))
    assert found.tokens == 2 + (1 + 1 + 3 + 1) + 10 + 11 + 40 + 1
    assert found.tiles == len(tiles)
    assert found.work == sum(tile.tokens + 1 for tile in tiles)
    assert (found.tiled, found.longest) == (2, 120)
    assert (found.unknown, found.ambiguous, found.ambiguous_records) == (4, 2, 1)


def test_all_problems_are_told_at_once() -> None:
    pairs = [("a", "ACJT"), ("", "AC"), ("b", ""), ("a", "AC"), ("c", "AC"), ("a", "A C")]
    with pytest.raises(InputError) as caught:
        survey(source_of(*pairs), "x", TILING)
    assert [str(p).split(";")[0] for p in caught.value.problems] == [
        "x line 1: 'J' at position 3 is no nucleotide code",
        "x line 6: ' ' at position 2 is no nucleotide code",
        "x line 2: the id is empty",
        "x line 3: the sequence is empty",
        "x line 4: the id 'a' stands already in x line 1",
        "x line 6: the id 'a' stands already in x line 1",
    ]


def test_problems_before_a_break_are_told_with_it() -> None:
    with pytest.raises(InputError) as caught:
        survey(source_of(("a", "A-"), ("cut off", "")), "x", TILING)
    assert [p.where for p in caught.value.problems] == ["x line 1", "x line 2"]


def test_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="x: holds no records"):
        survey(source_of(), "x", TILING)


def test_n_alone_is_refused_only_where_n_is_left_out() -> None:
    source = source_of(("a", "NNrn"), ("b", "NA"))
    assert survey(source, "x", TILING).unknown == 5
    with pytest.raises(InputError, match="x line 1: the sequence has N only; without --skip-n"):
        survey(source, "x", TILING, known_only=True)


@pytest.mark.parametrize(("records", "length", "limit"), [(1000, 5000, 0.5), (1, 1_500_000, 6.5)])
def test_memory_holds_one_record(
    tmp_path: Path, dna: Callable[..., str], records: int, length: int, limit: float
) -> None:
    """5 MB in less than a tenth of that; a long record at most about four times."""
    text, path = dna(length, 0).lower(), tmp_path / "x.fa"
    lines = "\n".join(text[i : i + 80] for i in range(0, length, 80))
    path.write_text("".join(f">record{i}\n{lines}\n" for i in range(records)))
    tracemalloc.start()
    found = survey(partial(read_fasta, path), "x", Tiling(k=6, capacity=2000, overlap=200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.bases == records * length
    assert peak < limit * 1e6


def test_the_digest_is_that_of_ids_and_clean_sequences() -> None:
    def digest(*pairs: tuple[str, str]) -> str:
        reading = Reading(source_of(*pairs), "x")
        list(reading)
        assert reading.digest == survey(source_of(*pairs), "x", TILING).digest
        return reading.digest

    one = digest(("a", "ACGT"), ("b", "NT"))
    assert one == digest(("a", "acgu"), ("b", "RT"))
    others = [digest(("a", "ACGT")), digest(("a", "ACGT"), ("c", "NT"))]
    others += [digest(("b", "NT"), ("a", "ACGT")), digest(("a", "ACG"), ("bT", "NT"))]
    assert len({one, *others}) == 5


def test_a_source_that_finds_problems_later_stops_the_reading() -> None:
    def records(findings: Findings) -> Iterator[Record]:
        yield Record(where="x line 1", id="a", sequence="AC")
        findings.add("late", where="x line 2", what="is late", mend="")

    with pytest.raises(InputError, match="x line 2: is late"):
        list(Reading(records, "x"))
