"""The verb: every way in, what it prints and writes, and what it refuses."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import cedilla
from cedilla.cli import main
from cedilla.dna.alphabet import reverse_complement
from cedilla.errors import InputError

TEXT = "ACGTTGCATTCG<mask>TTGACAGGGC<mask>TTAA"
PLAIN = "ACGTTGCATTCGTTGACANGGGCTATTTAA"


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(f">a one\n{TEXT[:20]}\n{TEXT[20:]}\n>b\n<mask>acgtry\n")
    return path


@pytest.fixture
def predict(three_mers):
    """The verb with a model over 3-mers."""
    return partial(cedilla.predict_mask, model=str(three_mers))


def problems(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return list(map(str, caught.value.problems))


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(["predict-mask", *map(str, words)])
    return left.value.code


@torch.no_grad()
def kmers_at_masks(naive, text):
    """For each mask, the probability of each k-mer, by the plain model."""
    ids, mask = naive.tokenizer.encode([text])
    p = naive.model(ids, mask).logits[0].double().softmax(-1)
    kmers = naive.tokenizer.kmers
    names = naive.tokenizer.vocabulary[kmers]
    return [dict(zip(names, row.tolist(), strict=True)) for row in p[ids[0] == 2][:, kmers]]


def test_the_most_probable_kmers_are_those_of_the_plain_model(naive, tiny, three_mers, hybrid):
    for model in ("mini", tiny, three_mers, hybrid):
        frame = cedilla.predict_mask(TEXT, model=model, top=4)
        wanted = kmers_at_masks(naive(model), TEXT)
        assert len(frame) == 4 * len(wanted) == 8
        for mask, p in enumerate(wanted, start=1):
            found = frame[frame["mask"] == mask]
            best = sorted(p.values(), reverse=True)[:4]
            np.testing.assert_allclose(found["probability"], best, rtol=1e-3)
            np.testing.assert_allclose(
                found["probability"], [p[k] for k in found["kmer"]], rtol=1e-3
            )
            np.testing.assert_allclose(found["other"], 1 - sum(p.values()), atol=1e-5)
        assert frame["pos1"].unique().tolist() == [13, 23 + naive(model).tokenizer.k]


def test_both_strands_are_averaged_kmer_by_kmer(naive, predict, three_mers):
    frame = predict(TEXT, strands="both", top=64)
    forward = kmers_at_masks(naive(three_mers), TEXT)
    pieces = [reverse_complement(piece) for piece in reversed(TEXT.split("<mask>"))]
    backward = kmers_at_masks(naive(three_mers), "<mask>".join(pieces))
    for mask in (1, 2):
        found = frame[frame["mask"] == mask].set_index("kmer")["probability"]
        wanted = {
            kmer: (p + backward[2 - mask][reverse_complement(kmer)]) / 2
            for kmer, p in forward[mask - 1].items()
        }
        assert found.to_dict() == pytest.approx(wanted, rel=1e-3)
    bases = predict(TEXT, strands="both", per="base")
    first = bases.iloc[0]
    mean = [sum(p for k, p in found.items() if k[0] == "A") for found in (forward[0],)]
    mean += [sum(p for k, p in found.items() if k[-1] == "T") for found in (backward[1],)]
    assert first["A"] == pytest.approx(sum(mean) / 2 / (1 - first["other"]), rel=1e-3)


def test_bases_are_marginals_of_the_plain_model(naive, tiny):
    frame = cedilla.predict_mask(TEXT, model=tiny, per="base")
    assert frame["pos1"].tolist() == [*range(13, 19), *range(29, 35)]
    for mask, p in enumerate(kmers_at_masks(naive(tiny), TEXT), start=1):
        for j, (_, row) in enumerate(frame[frame["mask"] == mask].iterrows()):
            for base in "ACGT":
                share = sum(v for k, v in p.items() if k[j] == base) / sum(p.values())
                assert row[base] == pytest.approx(share, rel=1e-3)


def test_a_position_masks_its_kmer_in_every_sequence(tmp_path, predict):
    by_position = predict(["ACGTTGCAT", "TTTTTGCATA"], position="5")
    by_hand = predict(["ACG<mask>CAT", "TTT<mask>CATA"])
    pd.testing.assert_frame_equal(by_position, by_hand)
    table = tmp_path / "in.csv"
    table.write_text("id,seq,at\nx,ACGTTGCAT,4 6\ny,TTTTTGCATA,1;5\n")
    by_column = predict(table, sequence="seq", position="at", per="base")
    assert by_column["id"].tolist() == ["x"] * 3 + ["y"] * 6
    assert by_column["pos1"].tolist() == [4, 5, 6, *range(1, 7)]


def test_scores_agree_between_rows_and_with_either_strand(predict):
    one, both = (predict([PLAIN], score=True, strands=s) for s in ("forward", "both"))
    assert (one["tokens"][0], one["bases"][0]) == (11, 29)
    tokens = predict([PLAIN], score=True, per="token")
    bases = predict([PLAIN], score=True, per="base")
    assert one["pll"][0] == pytest.approx(tokens["log_p"].sum())
    assert one["base_pll"][0] == pytest.approx(bases["log_p"].sum())
    assert "".join(tokens["kmer"]) == "".join(bases["base"]) == PLAIN
    assert bases["pos1"].tolist() == list(range(1, 31))
    other = predict([reverse_complement(PLAIN)], score=True)
    for name in ("pll", "base_pll", "other"):
        assert both[name][0] == pytest.approx((one[name][0] + other[name][0]) / 2)
    mean = predict([PLAIN], score=True, strands="both", per="base")
    turned = predict([reverse_complement(PLAIN)], score=True, per="base")[::-1]
    for base, complement in zip("ACGT", "TGCA", strict=True):
        wanted = (bases[f"log_p_{base}"].to_numpy() + turned[f"log_p_{complement}"].to_numpy()) / 2
        np.testing.assert_allclose(mean[f"log_p_{base}"], wanted, atol=1e-5)


def test_a_stride_is_an_approximation(dna):
    text = [dna(240, 0)]
    exact, close = (cedilla.predict_mask(text, score=True, stride=s) for s in (None, 16))
    assert 0 < abs(exact["pll"][0] - close["pll"][0]) < 0.02 * abs(exact["pll"][0])


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.tsv"])
def test_a_file_holds_all_rows(fasta, tmp_path, name, predict):
    out = tmp_path / name
    frame = predict(fasta, out=out)
    reader = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".tsv": pd.read_table}[out.suffix]
    pd.testing.assert_frame_equal(reader(out), frame, check_dtype=False)
    assert frame["id"].tolist() == ["a"] * 10 + ["b"] * 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_small_batches_give_the_same(fasta, predict):
    whole, small = (predict(fasta, batch_tokens=n) for n in (None, 1))
    pd.testing.assert_frame_equal(whole, small, rtol=1e-4)


def test_one_sequence_is_printed_in_two_tables(capsys, three_mers):
    assert run("--model", three_mers, "ACG<mask>TTT", "--top", 2) == 0
    out = capsys.readouterr().out
    assert out.count("pos1") == 2
    assert "kmer" in out
    assert "sequence" not in out


def test_many_rows_are_counted_and_their_n_noted(fasta, capsys, three_mers):
    assert run("--model", three_mers, fasta, "--top", 30) == 0
    captured = capsys.readouterr()
    assert captured.out.count("pos1") == 1
    assert "50 more rows; --out writes all of them" in captured.err
    assert "note: 2 IUPAC codes such as R or Y are read as N" in captured.err
    assert run("--model", three_mers, PLAIN, "--score") == 0
    assert "note: 1 bases are N and get no score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([TEXT], "1 sequences, 2 tokens to predict in 1 passes on one strand"),
        ([PLAIN, "--score"], "1 sequences, 11 tokens to predict in 11 passes on one strand"),
        (
            [PLAIN, "--score", "--stride", 4, "--strands", "both"],
            "1 sequences, 11 tokens to predict in 4 passes on each strand",
        ),
    ],
)
def test_a_dry_run_says_what_it_would_take(words, wanted, tmp_path, capsys, three_mers):
    out = tmp_path / "a.csv"
    assert run("--model", three_mers, *words, "--dry-run", "--out", out) == 0
    err = capsys.readouterr().err
    assert wanted in err
    assert "tokens/s" in err
    assert "; memory: " in err
    assert not out.exists()


def test_sequences_without_or_with_masks_are_refused_together(fasta):
    assert problems(cedilla.predict_mask, ["ACG", "ACG<mask>", "TTT"]) == [
        f"sequence {i}: has no <mask>; write one, pass --position, or --score the whole sequence"
        for i in (1, 3)
    ]
    assert problems(cedilla.predict_mask, fasta, score=True) == [
        f"{fasta} line {line} (record {id}): has a <mask>; leave out --score to predict it"
        for line, id in ((1, "a"), (4, "b"))
    ]


def test_sequences_beyond_the_context_are_refused(tiny):
    long, longest = "ACGTTC" * 64, "ACGTTC" * 63
    mend = "cut it into windows of 378 bases at most, or take a model with more context"
    assert problems(cedilla.predict_mask, [long, longest], model=tiny, score=True) == [
        f"sequence 1: has 65 tokens; the model takes 64; {mend}"
    ]


def test_all_wrong_settings_are_named_at_once(tmp_path, predict):
    (tmp_path / "a.csv").touch()
    found = problems(
        cedilla.predict_mask,
        TEXT,
        out=tmp_path / "a.csv",
        per="token",
        strands="both",
        stride=1,
        top=0,
        batch_tokens=0,
        device=None if torch.cuda.is_available() else "cuda",
    )
    assert [found[i].split(": ", 1)[1].split(";")[0] for i in (0, 1, 2, 3, 4, 5)] == [
        "--per token does not go without --score",
        "--top 0 is impossible",
        "--stride goes with --score only",
        "--stride 1 is impossible",
        "--per token is impossible on both strands, whose tokens cover different bases",
        "--batch-tokens 0 is impossible",
    ]
    assert f"{tmp_path / 'a.csv'} exists already" in found[6]
    assert len(found) == 7 + (not torch.cuda.is_available())
    (one, two) = problems(
        cedilla.predict_mask, PLAIN, score=True, position="3", out=tmp_path / "a.xlsx"
    )
    assert "--score and --position exclude each other" in one
    assert ".xlsx is no format to write; take .parquet, .csv, .tsv" in two
    (per,) = problems(cedilla.predict_mask, PLAIN, score=True, per="kmer")
    assert "--per kmer does not go with --score; take sequence or token or base" in per
    assert problems(predict, TEXT, top=65) == [
        "cedilla predict-mask: --top 65 is impossible; the model has 64 k-mers"
    ]


def test_bad_input_leaves_with_code_2(tmp_path, capsys):
    assert run(tmp_path / "absent.fa") == 2
    assert run("ACX<mask>") == 2
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert "error: sequence 1: 'X' at position 3 is no nucleotide code" in err


def test_tokens_of_a_sequence_that_is_shorter_than_a_kmer_have_no_other_mass(predict):
    frame = predict(["AC"], score=True)
    assert frame["tokens"].tolist() == [2]
    assert math.isnan(frame["other"][0])
    assert frame["pll"][0] == pytest.approx(frame["base_pll"][0])


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("TT", "NT")])
def test_single_bases_are_listed_and_averaged_over_strands(naive, hybrid, text):
    predict = partial(cedilla.predict_mask, model=str(hybrid), strands="both")
    frame = predict(text)  # by default as many as there are
    assert frame.groupby("mask")["kmer"].agg(set).tolist() == [set("ACGT")] * 2
    forward = kmers_at_masks(naive(hybrid), text)
    turned = "<mask>".join(reverse_complement(piece) for piece in reversed(text.split("<mask>")))
    backward = kmers_at_masks(naive(hybrid), turned)[::-1]
    bases, other = predict(text, per="base"), predict(turned, per="base")[::-1]
    for mask, (one, two) in enumerate(zip(forward, backward, strict=True)):
        wanted = {b: (one[b] + two[reverse_complement(b)]) / 2 for b in "ACGT"}
        found = frame[frame["mask"] == mask + 1].set_index("kmer")["probability"]
        assert found.to_dict() == pytest.approx(wanted, rel=1e-4)
        total = sum(wanted.values())
        assert bases.iloc[mask]["other"] == pytest.approx(1 - total, abs=1e-6)
        for base in "ACGT":
            assert bases.iloc[mask][base] == pytest.approx(wanted[base] / total, rel=1e-4)
            same = other.iloc[mask][reverse_complement(base)]
            assert bases.iloc[mask][base] == pytest.approx(same, rel=1e-4)
