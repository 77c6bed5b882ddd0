"""Masks in sequences: where they are, how they are put there, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna.records import Record
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.inference.masks import (
    Masked,
    is_sequence,
    kmer_start0,
    mask_bases,
    mask_positions,
    read_masked,
    read_positions,
    refuse,
)


def masked(text, id="a"):
    return Masked(where=f"in.fa ({id})", id=id, text=text)


def problems(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return list(map(str, caught.value.problems))


def test_each_mask_counts_as_one_kmer():
    text = masked("ACGTA<mask>N<mask><mask>AC")
    assert list(text.positions1(6)) == [6, 13, 19]
    assert list(text.positions1(3)) == [6, 10, 13]
    assert text.masks == 3
    assert list(masked("ACG").positions1(3)) == []


def test_the_other_strand_has_its_masks_in_reverse_order():
    assert masked("AACG<mask>NT<mask>").other_strand() == "<mask>AN<mask>CGTT"


@given(st.text("ACGTN", max_size=40), st.sampled_from([1, 3, 6]))
def test_the_kmer_of_a_base_is_the_one_that_the_tokenizer_reads(sequence, k):
    tokenizer = Tokenizer(k)
    (row,) = tokenizer.encode_ragged([sequence])
    tokens = [tokenizer.vocabulary[i] for i in row[1:]]
    is_kmer = (row[1:] >= tokenizer.kmers.start) & (row[1:] < tokenizer.kmers.stop)
    wanted, start = [], 0
    for token, whole in zip(tokens, is_kmer, strict=True):
        wanted += [start if whole else None] * len(token)
        start += len(token)
    assert [kmer_start0(sequence, i, k) for i in range(len(sequence))] == wanted
    assert kmer_start0(sequence, len(sequence), k) is None
    assert kmer_start0(sequence, -1, k) is None
    # Masking a k-mer leaves all other tokens as they were.
    for start in {start for start in wanted if start is not None}:
        (other,) = tokenizer.encode_ragged([mask_bases(sequence, [start], k)])
        assert (row != other).sum() == 1
        assert len(row) == len(other)


def test_bases_of_one_kmer_are_masked_once():
    assert mask_bases("ACGTTTACG", [6, 0, 6], 3) == "<mask>TTT<mask>"


def test_positions_become_masks():
    found = mask_positions([masked("ACGNACGTTTA"), masked("ACGTTT", "b")], [[5, 7, 8], [6]], 3)
    assert [text.text for text in found] == ["ACGN<mask><mask>A", "ACG<mask>"]
    assert list(found[0].positions1(3)) == [5, 8]


def test_all_positions_that_cannot_be_masked_are_named():
    texts = [masked("ACGTA", f"{i}") for i in range(5)] + [masked("AC<mask>", "m")]
    assert problems(mask_positions, texts, [[0], [4], [1, 6], [2], [], [1]], 3) == [
        *(
            f"in.fa ({i}): base {base} is in no whole 3-mer; bases count from 1; N and the bases "
            "behind a run's last k-mer cannot be masked"
            for i, base in ((0, 0), (1, 4), (2, 6))
        ),
        "in.fa (4): has no position to mask; fill it, or drop the record",
        "in.fa (m): has <mask> and positions; give one of the two",
    ]


def test_ten_thousand_bad_rows_are_counted():
    found = problems(mask_positions, [masked("ACGTA")] * 10_000, [[5]] * 10_000, 3)
    assert len(found) == 6
    assert "10,000 in all" in found[-1]


def test_texts_without_masks_are_refused_together():
    texts = [masked("ACG"), masked("<mask>"), masked("TTT", "c")]
    assert problems(refuse, texts, lambda t: not t.masks, what="has none", mend="add one") == [
        "in.fa (a): has none; add one",
        "in.fa (c): has none; add one",
    ]
    refuse(texts, lambda t: t.masks > 1, what="", mend="")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("ACGT", True), ("acgtnu", True), ("x<mask>", True), ("data", False), ("a.fa", False)],
)
def test_a_sequence_is_told_from_a_path(text, wanted):
    assert is_sequence(text) is wanted


def test_a_file_goes_before_a_sequence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ACT").touch()
    assert not is_sequence("ACT")
    assert is_sequence("ACGT" * 2000)  # longer than any path


def source(*pairs):
    def records(findings):
        for number, (id, sequence) in enumerate(pairs, start=1):
            yield Record(where=f"in.csv line {number + 1}", id=id, sequence=sequence)

    return records


def test_records_are_cleaned_and_keep_their_masks():
    a, b = read_masked(source(("a", "acgu<mask>ryN"), ("b", "<mask>")), "in.csv")
    assert (a.text, a.ambiguous) == ("ACGT<mask>NNN", 2)
    assert (b.text, b.id, b.where) == ("<mask>", "b", "in.csv line 3")


def test_every_problem_of_every_record_is_reported():
    bad = source(
        ("a", "ACG<mask>AC-T"), ("a", "ACG"), ("", "ACG"), ("d", ""), ("e", "NNN"), ("f", "<MASK>")
    )
    codes = "; use A, C, G, T, N or another IUPAC code, and write masks as <mask>"
    assert problems(read_masked, bad, "in.csv") == [
        f"in.csv line 2: '-' at position 12 is no nucleotide code{codes}",
        f"in.csv line 7: '<' at position 1 is no nucleotide code{codes}",
        "in.csv line 3: the id 'a' stands already in in.csv line 2; make the ids unique",
        "in.csv line 4: the id is empty; name the record",
        "in.csv line 5: the sequence is empty; fill it, or drop the record",
        "in.csv line 6: the sequence has N only; drop the record",
    ]
    assert problems(read_masked, source(), "in.csv") == [
        "in.csv: holds no records; at least one sequence is needed"
    ]


def test_what_breaks_the_reading_off_is_reported_beside_the_rest():
    def broken(findings):
        yield Record(where="line 1", id="a", sequence="X")
        raise InputError.one("line 2", "is cut off")

    assert [p.split(";")[0] for p in problems(read_masked, broken, "x")] == [
        "line 1: 'X' at position 1 is no nucleotide code",
        "line 2: is cut off",
    ]


def test_positions_are_numbers_for_all_or_a_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sequence,at\nACGT,3\nACGTT,4 2\nAC,\nAC,1;2\n")
    assert read_positions(("3", "4"), "ACGT", 2) == [[3, 4], [3, 4]]
    assert read_positions((3,), "ACGT", 1) == [[3]]
    assert read_positions(("at",), path, 4) == [[3], [4, 2], [], [1, 2]]
    columns = {"sequence": ["A", "C", "G"], "at": [[1, 2], [], None], "n": [1, 2, None]}
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    assert read_positions(("at",), str(tmp_path / "a.parquet"), 3) == [[1, 2], [], []]
    assert read_positions(("n",), tmp_path / "a.parquet", 3) == [[1], [2], []]


def test_positions_that_are_none_are_refused(tmp_path):
    path, fasta = tmp_path / "a.csv", tmp_path / "a.fa"
    path.write_text("sequence,at\nACGT,1.5\nACGTT,4\nAC,-1\n")
    fasta.write_text(">a\nACGT\n")
    numbers = "whole numbers such as 12 or 12 40"
    assert problems(read_positions, ("at",), path, 3) == [
        f"{path} line 2: '1.5' are no positions; {numbers}",
        f"{path} line 4: '-1' are no positions; {numbers}",
    ]
    assert problems(read_positions, ("on",), path, 3) == [
        f"{path}: has no column 'on'; its columns: sequence, at"
    ]
    assert problems(read_positions, ("at",), fasta, 1) == [
        "--position at: names a column, and the input is no table; give numbers"
    ]
    assert problems(read_positions, ("1", "x"), "ACGT", 1) == problems(
        read_positions, ("1", "x"), ["ACGT"], 1
    )
