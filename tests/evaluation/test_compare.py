"""The comparison as a verb: on tables whose answer is known."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from cedilla.errors import InputError, MissingData
from cedilla.evaluation import learners
from cedilla.evaluation.compare import compare
from cedilla.evaluation.confidence import block_bootstrap
from cedilla.evaluation.learners import BoostedKmers
from cedilla.metrics.classification import best_threshold, classification_metrics
from cedilla.models import zoo
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory

ARMS = [
    *("sequence", "beta", "sequence+beta", "sequence+annotation", "sequence+annotation+beta"),
    *("shuffled", "missing", "beta threshold"),
]
SETTINGS = {
    "label": "label",
    "group": "chrom_hg19",
    "dev": ("chr2",),
    "test": ("chr3", "chr4"),
    "annotation": ("island",),
    "seeds": 1,
}


def loci(n: int = 300, *, signal: float = 0.3) -> pd.DataFrame:
    """Random sequences; beta is lower by `signal` on either side of .5 where the label is 1."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, n)
    beta = 0.5 + np.where(label == 1, -signal, signal) + rng.normal(0, 0.15, n)
    return pd.DataFrame(
        {
            "sequence": ["".join(rng.choice(list("ACGT"), 40)) for _ in range(n)],
            "label": label,
            "beta": beta.clip(0, 1).round(3),
            "island": rng.integers(0, 2, n),
            "chrom_hg19": [f"chr{1 + i % 6}" for i in range(n)],
            "start_hg19": rng.integers(0, 100_000_000, n),
        }
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(learners, "ITERATIONS", 36)
    shape = CNNConfig(hidden_size=8, num_hidden_layers=1)
    monkeypatch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "loci.csv"
    frame = loci()
    frame.loc[::20, "beta"] = np.nan
    frame.to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """One complete comparison of three seeds, which several tests read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "ITERATIONS", 36)
        assert compare(table, out=out, **SETTINGS | {"seeds": 3}) == out
    return out


def metrics_of(out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((out / "metrics.json").read_text(), parse_constant=refuse)


def complaints(table, out, **settings) -> list[str]:
    with pytest.raises(InputError) as caught:
        compare(table, out=out, **SETTINGS | settings)
    assert not out.exists()
    return [str(problem) for problem in caught.value.problems]


def test_a_beta_that_carries_the_label_adds(run):
    metrics = metrics_of(run)
    assert metrics["verdict"]["call"] == "adds"
    assert metrics["arms"]["sequence+annotation+beta"]["auroc"] > 0.85
    assert 0.3 < metrics["arms"]["sequence+annotation"]["auroc"] < 0.7
    assert metrics["arms"]["beta"]["auroc"] > 0.85


def test_a_beta_that_carries_nothing_adds_nothing(tmp_path):
    path = tmp_path / "loci.csv"
    loci(signal=0.0).to_csv(path, index=False)
    compare(str(path), out=tmp_path / "r", **SETTINGS)
    verdict = metrics_of(tmp_path / "r")["verdict"]
    assert verdict["call"] == "adds nothing measurable"
    assert "would have been found" in verdict["sentence"]


def test_metrics_hold_what_others_rely_on(run):
    metrics = metrics_of(run)
    facts = {k: metrics[k] for k in ("label", "beta", "model")}
    assert facts == {"label": "label", "beta": "beta", "model": "kmer"}
    assert metrics["n"].keys() == {"train", "dev", "test"}
    assert list(metrics["arms"]) == ARMS
    for arm in metrics["arms"].values():
        for metric in ("auroc", "auprc", "mcc"):
            low, high = arm["interval"][metric]
            assert low <= arm[metric] <= high
            assert len(arm["seeds"][metric]) == 3
            assert arm[metric] == pytest.approx(np.mean(arm["seeds"][metric]))
            assert arm["sd"][metric] == pytest.approx(np.std(arm["seeds"][metric], ddof=1))
    first = metrics["differences"][0]
    assert (first["arm"], first["against"]) == ("sequence+annotation+beta", "sequence+annotation")
    for found in metrics["differences"]:
        assert found.keys() == {
            *("arm", "against", "metric", "difference", "low", "high", "p"),
            "smallest_detectable",
        }
        a, b = (metrics["arms"][found[k]][found["metric"]] for k in ("arm", "against"))
        assert found["difference"] == pytest.approx(a - b)
        assert found["low"] <= found["difference"] <= found["high"]
    assert metrics["verdict"].keys() == {"call", "sentence", "limits"}


def test_missing_betas_give_the_sequence_model_exactly(run):
    frame = pd.read_parquet(run / "predictions" / "test.parquet")
    by_arm = {name: part["probability"].to_numpy() for name, part in frame.groupby("arm")}
    np.testing.assert_array_equal(by_arm["missing"], by_arm["sequence"])
    assert not np.array_equal(by_arm["shuffled"], by_arm["sequence"])
    (same,) = (
        d
        for d in metrics_of(run)["differences"]
        if (d["arm"], d["against"], d["metric"]) == ("missing", "sequence", "auroc")
    )
    assert (same["difference"], same["p"]) == (0, 1)


def test_all_arms_and_seeds_have_the_same_rows(run, table):
    given = pd.read_csv(table)
    for split, groups in (("dev", ["chr2"]), ("test", ["chr3", "chr4"])):
        frame = pd.read_parquet(run / "predictions" / f"{split}.parquet")
        expected = given[given.chrom_hg19.isin(groups) & given.beta.notna()]
        assert set(frame["arm"]) == set(ARMS)
        for _, part in frame.groupby(["arm", "seed"]):
            assert part["id"].tolist() == [str(i + 2) for i in expected.index]
            assert part["label"].tolist() == expected["label"].tolist()
            assert part["group"].tolist() == expected["chrom_hg19"].tolist()
        blocks = (
            expected.chrom_hg19 + ":" + (expected.start_hg19 // 2_000_000 * 2_000_000).astype(str)
        )
        assert part["block"].tolist() == blocks.tolist()
        assert set(frame["split"]) == {split}
    assert metrics_of(run)["n"]["test"] == len(expected)


def test_metrics_follow_from_the_predictions_and_the_dev_threshold(run):
    frame = pd.read_parquet(run / "predictions" / "test.parquet")
    arms = metrics_of(run)["arms"]
    for (arm, seed), part in frame.groupby(["arm", "seed"]):
        threshold = arms[arm]["threshold"][seed]
        found = classification_metrics(part["label"], part["probability"], threshold=threshold)
        for metric in ("auroc", "auprc", "mcc"):
            assert arms[arm]["seeds"][metric][seed] == pytest.approx(found[metric])


def test_thresholds_are_chosen_on_dev(run):
    frame = pd.read_parquet(run / "predictions" / "dev.parquet")
    arms = metrics_of(run)["arms"]
    for (arm, seed), part in frame.groupby(["arm", "seed"]):
        chosen = best_threshold(part["label"], part["probability"])
        assert arms[arm]["threshold"][seed] == pytest.approx(chosen)


def test_intervals_come_from_the_blocks(table, tmp_path):
    """Blocks of 20 Mb hold several loci, so that rows alone would give other intervals."""
    compare(table, out=tmp_path / "r", **SETTINGS, block_size=20_000_000)
    metrics = metrics_of(tmp_path / "r")
    assert "from 10 blocks of 20 Mb" in metrics["verdict"]["limits"][0]
    frame = pd.read_parquet(tmp_path / "r" / "predictions" / "test.parquet")
    part = frame[frame.arm == "beta"]
    (threshold,) = metrics["arms"]["beta"]["threshold"]
    for blocks, same in ((part["block"], True), (None, False)):
        found = block_bootstrap(part["label"], part["probability"], blocks, threshold=threshold)
        expected = metrics["arms"]["beta"]["interval"]["auroc"]
        low, high = found["auroc"].low, found["auroc"].high
        assert np.allclose([low, high], expected, rtol=1e-6) == same


def test_what_was_left_out_is_counted_and_said(run, capsys, table, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["left_out"] == {"no beta": 15}
    assert manifest["data"][0]["rows"] == 300
    assert sum(manifest["counts"].values()) == 285
    compare(table, out=tmp_path / "r", **SETTINGS | {"drop": ("chr6",), "rows": 60})
    said = " ".join(capsys.readouterr().err.split())
    for reason in ("50 rows, chrom_hg19 is one of chr6", "rows, no beta", "rows, beyond --rows"):
        assert reason in said


def test_limits_name_the_rows_the_blocks_and_few_seeds(run, table, tmp_path):
    (limit,) = metrics_of(run)["verdict"]["limits"]
    assert limit.startswith("Tested on 95 loci of chr3, chr4; intervals come from ")
    assert limit.endswith(" blocks of 2 Mb.")
    compare(table, out=tmp_path / "r", **SETTINGS)
    limits = metrics_of(tmp_path / "r")["verdict"]["limits"]
    assert limits[1].startswith("Fewer than three seeds")
    arm = metrics_of(tmp_path / "r")["arms"]["sequence"]
    assert arm["sd"] == {"auroc": None, "auprc": None, "mcc": None}


def test_without_annotation_there_are_fewer_arms(table, tmp_path):
    compare(table, out=tmp_path / "r", **SETTINGS | {"annotation": ()})
    metrics = metrics_of(tmp_path / "r")
    assert list(metrics["arms"]) == [arm for arm in ARMS if "annotation" not in arm]
    first = metrics["differences"][0]
    assert (first["arm"], first["against"]) == ("sequence+beta", "sequence")


def test_a_run_that_was_cut_off_keeps_its_cells(run, table, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    shutil.copytree(run, out)
    before = metrics_of(out)
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "predictions")
    # Only this cell is to be made again; another one is made recognisable.
    shutil.rmtree(out / "cells" / "beta-1")
    marked = np.load(out / "cells" / "shuffled-0" / "scores.npy") + 1.0
    np.save(out / "cells" / "shuffled-0" / "scores.npy", marked)
    calls = []
    real = BoostedKmers.scores
    monkeypatch.setattr(
        BoostedKmers, "scores", lambda self, *a: calls.append(a[3].name) or real(self, *a)
    )
    compare(table, out=out, **SETTINGS | {"seeds": 3}, resume=True)
    assert calls == ["beta-1"]
    frame = pd.read_parquet(out / "predictions" / "test.parquet")
    kept = frame[(frame.arm == "shuffled") & (frame.seed == 0)]["probability"]
    old = pd.read_parquet(run / "predictions" / "test.parquet")
    assert (kept > old[(old.arm == "shuffled") & (old.seed == 0)]["probability"]).all()
    after = metrics_of(out)
    assert after["arms"]["beta"] == before["arms"]["beta"]
    assert after["arms"]["sequence+beta"] == before["arms"]["sequence+beta"]


def test_an_interrupted_run_ends_as_the_uninterrupted_one(run, table, tmp_path, monkeypatch):
    real, calls = BoostedKmers.scores, []

    def killed(self, *args):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(BoostedKmers, "scores", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(table, out=tmp_path / "cut", **SETTINGS | {"seeds": 3})
    monkeypatch.setattr(BoostedKmers, "scores", real)
    compare(table, out=tmp_path / "cut", **SETTINGS | {"seeds": 3}, resume=True)
    assert metrics_of(tmp_path / "cut") == metrics_of(run)
    stamp = (tmp_path / "cut" / "manifest.json").stat().st_mtime_ns
    compare(table, out=tmp_path / "cut", **SETTINGS | {"seeds": 3}, resume=True)
    assert (tmp_path / "cut" / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("model", ["cnn", "directory"])
def test_a_network_runs_from_end_to_end(table, tmp_path, model):
    if model == "directory":
        torch.manual_seed(0)
        config = NTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=75,
            max_position_embeddings=66,
        )
        save_directory(NucleotideTransformer(config), tmp_path / "tiny")
        model = str(tmp_path / "tiny")
    out = tmp_path / "r"
    compare(table, out=out, **SETTINGS, model=model, epochs=1)
    metrics = metrics_of(out)
    assert metrics["model"] == model
    assert list(metrics["arms"]) == ARMS
    # The same weights at the start, and a branch that stays silent: the same model.
    assert metrics["arms"]["missing"] == metrics["arms"]["sequence"]
    assert (
        out / "cells" / "sequence+beta-0" / "checkpoints" / "best" / "model.safetensors"
    ).exists()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(table, tmp_path, capsys):
    for model in ("kmer", "cnn"):
        compare(table, out=tmp_path / "r", **SETTINGS | {"seeds": 3}, model=model, dry_run=True)
        said = " ".join(capsys.readouterr().err.split())
        assert "140 train, 50 dev, 95 test rows; 21 models, about" in said
        assert "GB of memory" in said
    assert not (tmp_path / "r").exists()


def test_bad_input_is_refused_before_anything_is_written(table, tmp_path):
    out = tmp_path / "r"
    assert "did you mean 'beta'?" in complaints(table, out, beta="betas")[0]
    assert "has no 'chr22' (--test)" in complaints(table, out, test=("chr3", "chr22"))[0]
    assert "chr2 in two lists" in complaints(table, out, test=("chr2", "chr3"))[0]
    assert "is neither in the zoo" in complaints(table, out, model="minni")[0]
    assert len(complaints(table, out, seeds=0, epochs=0, rows=1, block_size=0)) == 4


def test_long_sequences_are_refused_by_file_and_line(tmp_path, three_mers):
    frame = loci(120)
    frame.loc[11, "sequence"] = "A" * 7000
    path = tmp_path / "loci.csv"
    frame.to_csv(path, index=False)
    (problem,) = complaints(str(path), tmp_path / "r", model=str(three_mers))
    assert f"{path} line 13: has 2,335 tokens; the model takes 127" in problem


def test_a_table_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CEDILLA_DATA", raising=False)
    assert "none.csv: not found" in complaints("none.csv", tmp_path / "r")[0]
    assert "hm27" in complaints("hm2", tmp_path / "r")[0]
    with pytest.raises(MissingData):
        compare("hm27", out=tmp_path / "r", **SETTINGS)


def test_the_table_of_results_fits_80_columns(run, table, capsys, monkeypatch, tmp_path):
    shutil.copytree(run, tmp_path / "r")
    (tmp_path / "r" / "metrics.json").unlink()
    compare(table, out=tmp_path / "r", **SETTINGS | {"seeds": 3}, resume=True)
    said = capsys.readouterr().err
    assert "…" not in said
    assert "sequence+annotation+beta" in said
