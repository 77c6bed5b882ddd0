"""`cedilla predict`: every sequence of any input gets a row, the one that the model gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pysam
import pytest

from cedilla.dna.alphabet import clean
from cedilla.errors import InputError
from cedilla.inference import predict as module
from cedilla.inference.parts import Parts
from cedilla.inference.predict import predict
from cedilla.training.finetune import finetune
from cedilla.training.model_directory import load_finetuned

COMMAND = Path(sys.executable).with_name("cedilla")
SIZES = {"train": 48, "dev": 24, "test": 16}
COLUMNS = [
    "id", "predicted", "probability_rich", "calibrated_rich", "distance", "familiar", "unlike",
]  # fmt: skip


def random_sequences(n: int, seed: int, longest: int = 120) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ACGT"), rng.integers(60, longest))) for _ in range(n)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Callable[..., Path]:
    """trained(per_base=False): the run of a model of 6-mers that takes 63 of them."""

    def train(*, per_base: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("run")
        tables = {}
        for seed, (split, n) in enumerate(SIZES.items()):
            frame = pd.DataFrame({"sequence": random_sequences(n, seed)})
            gc = frame["sequence"].str.count("[CG]") > frame["sequence"].str.len() / 2
            frame["label"] = np.where(gc, "rich", "poor")
            if per_base:
                frame["label"] = frame["sequence"].str.translate(str.maketrans("ACGT", "0010"))
            tables[split] = folder / f"{split}.csv"
            frame.to_csv(tables[split], index=False)
        method = "head" if per_base else "bias"
        settings = {"model": str(tiny), "method": method, "epochs": 1, "batch_size": 16}
        return finetune(**tables, out=folder / "run", **settings)

    return train


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path]) -> Path:
    return trained()


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """25 sequences, one with N, one with an IUPAC code and in lower case."""
    texts = random_sequences(25, 9)
    texts[3] = texts[3][:20] + "NNN" + texts[3][23:]
    texts[4] = "r" + texts[4][1:].lower()
    path = tmp_path / "new.fa"
    path.write_text("".join(f">s{i} of many\n{text}\n" for i, text in enumerate(texts)))
    return path


def sequences_of(path: Path) -> list[str]:
    return [clean(record.split("\n")[1]) for record in path.read_text().split(">")[1:]]


def test_every_sequence_gets_the_row_that_the_model_gives_it(run, fasta, tmp_path):
    out = tmp_path / "p.parquet"
    assert predict(run, fasta, out=out) == out
    found = pd.read_parquet(out)
    assert list(found) == COLUMNS
    assert found["id"].tolist() == [f"s{i}" for i in range(25)]
    wanted = load_finetuned(run).predict(sequences_of(fasta))
    pd.testing.assert_frame_equal(found.drop(columns="id"), wanted, atol=1e-5, check_dtype=False)
    assert 0.5 < found["familiar"].mean() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.fa", "p.parquet"]


def test_inputs_and_outputs_of_all_formats_agree(run, fasta, tmp_path):
    texts, ids = sequences_of(fasta), [f"s{i}" for i in range(25)]
    table = tmp_path / "t.csv.gz"
    pd.DataFrame({"dna": texts, "name": ids}).to_csv(table, index=False)
    genome, bed = tmp_path / "g.fa", tmp_path / "b.bed"
    genome.write_text(">chr1\n" + "".join(texts) + "\n")
    pysam.faidx(str(genome))
    ends = np.cumsum([len(text) for text in texts])
    bed.write_text(
        "".join(
            f"chr1\t{end - len(text)}\t{end}\t{id}\n"
            for text, end, id in zip(texts, ends, ids, strict=True)
        )
    )
    inputs = {
        "fasta": partial(predict, run, fasta),
        "table": partial(predict, run, table, sequence="dna", id="name"),
        "bed": partial(predict, run, bed, genome=genome),
        "pairs": partial(predict, run, list(zip(ids, texts, strict=True))),
    }
    frames = [
        pd.read_csv(call(out=tmp_path / f"{name}.csv"), keep_default_na=False)
        for name, call in inputs.items()
    ]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])
    written = pd.read_parquet(inputs["fasta"](out=tmp_path / "p.parquet"))
    pd.testing.assert_frame_equal(frames[0], written, check_dtype=False)


def test_small_batches_give_the_same_rows_in_the_same_order(run, fasta, tmp_path, monkeypatch):
    once = pd.read_parquet(predict(run, fasta, out=tmp_path / "a.parquet"))
    monkeypatch.setattr(module, "BATCHES_PER_WINDOW", 2)
    out = predict(run, fasta, out=tmp_path / "b.parquet", batch_tokens=20)
    assert pq.ParquetFile(out).num_row_groups > 5  # written piece by piece
    pd.testing.assert_frame_equal(pd.read_parquet(out), once, atol=1e-5)


def test_windows_hold_no_more_than_they_need():
    records = [(str(i), "ACGTAC" * 9) for i in range(50)]
    drawn = 0

    def source():
        nonlocal drawn
        for record in records:
            drawn += 1
            yield record

    stream = module._windows(source(), 6, 35)
    assert [len(next(stream)) for _ in range(3)] == [4, 4, 4]
    assert drawn == 12


def test_an_interrupted_prediction_goes_on(run, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "BATCHES_PER_WINDOW", 2)
    call = partial(predict, run, fasta, batch_tokens=20)
    whole = pd.read_parquet(call(out=tmp_path / "whole.parquet"))
    out = tmp_path / "p.parquet"
    save = Parts.save

    def killed(self: Parts, number: int, *rest: object) -> None:
        if number == 3:
            raise KeyboardInterrupt
        save(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            call(out=out)
    assert not out.exists()
    assert Parts(out).count() == 3
    with pytest.raises(InputError, match=r"was begun and interrupted.*--resume"):
        call(out=out)
    with pytest.raises(InputError, match="begun with another long: refuse → tile"):
        call(out=out, resume=True, long="tile")
    fasta.write_text(fasta.read_text().replace(">s9 ", ">t9 "))
    with pytest.raises(InputError, match="begun with another input"):
        call(out=out, resume=True)
    fasta.write_text(fasta.read_text().replace(">t9 ", ">s9 "))
    predict(run, fasta, out=out, resume=True)  # in batches as it was begun with
    pd.testing.assert_frame_equal(pd.read_parquet(out), whole, check_exact=True)
    assert not Parts(out).folder.exists()


def test_long_sequences_are_refused_cropped_or_tiled(run, tmp_path, capsys):
    long = random_sequences(8, 3, longest=61)
    texts = [text * 12 for text in long[:7]] + long[7:]
    call = partial(predict, run, texts)
    with pytest.raises(InputError) as caught:
        call(out=tmp_path / "p.csv")
    problems = [str(problem) for problem in caught.value.problems]
    assert problems[0].startswith("sequence 1: has 121 tokens; the model takes 64; cut it, or pass")
    assert "(7 in all)" in problems[-1]
    found = {}
    for how in ("crop", "tile"):
        found[how] = pd.read_csv(call(out=tmp_path / f"{how}.csv", long=how))
        assert len(found[how]) == 8
        assert found[how]["unlike"].str.contains("length")[:7].all()
    said = capsys.readouterr().err
    assert "longer than the model takes, cropped to their centre: 7" in said
    assert "longer than the model takes, read in tiles: 7" in said
    crop, tile = (found[how]["probability_rich"] for how in ("crop", "tile"))
    assert (crop[:7] != tile[:7]).all()
    assert crop[7] == pytest.approx(tile[7], abs=1e-5)
    centre = texts[0][360 - 189 : 360 + 189]
    assert crop[0] == pytest.approx(
        load_finetuned(run).predict([centre])["probability_rich"][0], abs=1e-5
    )


def test_what_is_read_as_n_and_what_is_unlike_is_counted(run, fasta, tmp_path, capsys):
    fasta.write_text(fasta.read_text() + ">odd\n" + "AT" * 100 + "\n")
    frame = pd.read_csv(predict(run, fasta, out=tmp_path / "p.csv"))
    said = capsys.readouterr().err
    assert "note: 1 IUPAC codes such as R or Y (sequences with them: 1) are read as N" in said
    assert "note: bases that are N: 4 of" in said
    odd = frame.iloc[-1]
    assert {"length", "gc"} <= set(odd["unlike"].split(";"))
    assert not odd["familiar"]
    assert f"unlike those of the training: {(~frame['familiar']).sum()} of 26" in said
    assert f"their median distance from the training is {frame['distance'].median():.2f};" in said
    assert "26 rows in" in said


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(run, fasta, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    predict(run, fasta, out=tmp_path / "p.csv", dry_run=True)
    said = capsys.readouterr().err
    for word in ("sequences: 25;", "tokens:", "time: about", "memory:", "size of the result:"):
        assert word in said
    assert sorted(tmp_path.iterdir()) == before


def test_everything_wrong_with_the_settings_is_said_at_once(run, fasta, tmp_path):
    out = tmp_path / "p.txt"
    out.write_text("mine")
    with pytest.raises(InputError) as caught:
        predict(run, fasta, out=out, batch_tokens=0, device="abacus")
    text = str(caught.value)
    assert "has no format that can be written; end its name in .parquet or .csv" in text
    assert "exists already" in text
    assert "--batch-tokens 0 is impossible" in text
    assert "device abacus" in text
    assert out.read_text() == "mine"


def test_everything_wrong_with_the_input_is_said_at_once(run, tmp_path):
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nACGT\n>a\nACGT\n>b\nAC!T\n>c\n\n>d\n" + "A" * 999 + "\n")
    with pytest.raises(InputError) as caught:
        predict(run, bad, out=tmp_path / "p.csv")
    text = str(caught.value)
    for what in ("'a' stands already", "'!' at position 3", "is empty", "has 170 tokens"):
        assert what in text
    with pytest.raises(InputError, match=r"classifier.json: not found"):
        predict(tmp_path, bad, out=tmp_path / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fa"]


def test_answers_for_bases_are_lists(trained, fasta, tmp_path):
    run = trained(per_base=True)
    frame = pd.read_parquet(predict(run, fasta, out=tmp_path / "p.parquet"))
    for row, text in zip(frame.itertuples(), sequences_of(fasta), strict=True):
        assert len(row.predicted) == len(row.probability_1) == len(row.calibrated_0) == len(text)
    with pytest.raises(InputError, match=r"end --out in .parquet"):
        predict(run, fasta, out=tmp_path / "p.csv")
    with pytest.raises(InputError, match="would leave bases without an answer"):
        predict(run, fasta, out=tmp_path / "q.parquet", long="crop")


def test_the_command_line(run, fasta, tmp_path):
    out = tmp_path / "p.csv"
    words = ["predict", run, fasta, "--out", out]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(out)["id"].tolist() == [f"s{i}" for i in range(25)]
    assert done.stdout == ""
    assert "25 rows in" in done.stderr
