"""Fine-tuning as a verb: what it learns, writes, refuses, and takes up again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cedilla.errors import InputError
from cedilla.metrics.classification import METRICS, classification_metrics
from cedilla.training import loop
from cedilla.training.finetune import finetune
from cedilla.training.splits import SPLITS

SIZES = {"train": 128, "dev": 40, "test": 48}  # of the tables in conftest.py
FAST = {"batch_size": 16, "learning_rate": 2e-3, "select": "mcc"}


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def predictions_of(out: Path, split: str) -> pd.DataFrame:
    return pd.read_parquet(out / "predictions" / f"{split}.parquet")


def epochs_of(out: Path) -> list[dict]:
    """The logged epochs, without their times."""
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in event.items() if k != "seconds"} for event in events]


def assert_same(a: Path, b: Path) -> None:
    """Two runs agree bit for bit in metrics, epochs and predictions."""
    assert metrics_of(a) == metrics_of(b)
    assert epochs_of(a) == epochs_of(b)
    for split in SPLITS:
        pd.testing.assert_frame_equal(
            predictions_of(a, split), predictions_of(b, split), check_exact=True
        )


def complaints(*, out: Path, **settings) -> list[str]:
    with pytest.raises(InputError) as caught:
        finetune(out=out, **settings)
    assert not out.exists()  # what is refused leaves nothing that stands in the way
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny, tables):
    """One complete run of the tiny transformer, which several tests read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = FAST | {"epochs": 6}
    assert finetune(**tables, out=out, model=str(tiny), seed=3, **settings) == out
    return out


def test_a_transformer_learns_a_planted_motif(run):
    metrics = metrics_of(run)
    assert metrics["test"]["mcc"] > 0.8
    assert metrics["test"]["auroc"] > 0.95
    assert metrics["dev"]["mcc"] > 0.8


def test_metrics_say_what_was_done(run, tiny):
    text = (run / "metrics.json").read_text()
    assert "NaN" not in text
    metrics = json.loads(text)
    for split, n in SIZES.items():
        assert metrics[split].keys() == {*METRICS, "n", "prevalence"}
        assert metrics[split]["n"] == n
        assert metrics[split]["prevalence"] == 0.5
    for name, (low, high) in metrics["intervals"]["test"].items():
        assert low <= metrics["test"][name] <= high
    facts = {k: metrics[k] for k in ("model", "method", "task", "protocol")}
    assert facts == {"model": str(tiny), "method": "full", "task": None, "protocol": None}
    assert metrics["trainable"] == metrics["parameters"] > 10_000
    assert metrics["epochs"] == 6
    assert 1 <= metrics["best_epoch"] <= 6


def test_metrics_follow_from_the_predictions(run, tables):
    for split in SPLITS:
        frame = predictions_of(run, split)
        assert list(frame) == ["id", "label", "probability", "split", "seed", "group", "block"]
        given = pd.read_csv(tables[split])
        # Rows in the file's order, named by their line.
        assert frame["id"].tolist() == [str(i) for i in range(2, len(given) + 2)]
        assert frame["label"].tolist() == given["label"].tolist()
        assert set(frame["split"]) == {split}
        assert set(frame["seed"]) == {3}
        found = classification_metrics(frame["label"], frame["probability"])
        assert found == pytest.approx(metrics_of(run)[split])


def test_epochs_config_and_data_are_written_down(run, tables):
    events = epochs_of(run)
    assert [event["epoch"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert {"event", "epoch", "train_loss", "dev_loss", "dev"} == events[0].keys()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["learning_rate"] == 2e-3
    assert config["epochs"] == 6
    assert config["select"] == "mcc"
    manifest = json.loads((run / "manifest.json").read_text())
    assert {data["role"]: data["rows"] for data in manifest["data"]} == SIZES
    assert manifest["counts"]["test"] == {"0": 24, "1": 24}


def test_the_same_command_gives_the_same_numbers(run, tiny, tables, tmp_path):
    settings = FAST | {"epochs": 6}
    finetune(**tables, out=tmp_path / "again", model=str(tiny), seed=3, **settings)
    assert_same(run, tmp_path / "again")
    finetune(**tables, out=tmp_path / "other", model=str(tiny), seed=4, **settings)
    assert epochs_of(run) != epochs_of(tmp_path / "other")
    probabilities = [predictions_of(o, "test")["probability"] for o in (run, tmp_path / "other")]
    assert not np.allclose(*probabilities)


@pytest.mark.usefixtures("small_cnn")
def test_the_cnn_learns_a_planted_motif(tables, tmp_path):
    finetune(
        **tables, out=tmp_path / "r", model="cnn", **FAST | {"epochs": 12, "learning_rate": 1e-2}
    )
    assert metrics_of(tmp_path / "r")["test"]["mcc"] > 0.8


def test_three_classes(tiny, make_tables, tmp_path):
    tables = make_tables(classes=3)
    finetune(**tables, out=tmp_path / "r", model=str(tiny), **FAST | {"epochs": 8})
    metrics, frame = metrics_of(tmp_path / "r"), predictions_of(tmp_path / "r", "test")
    columns = ["probability_0", "probability_1", "probability_2"]
    assert [c for c in frame if c.startswith("probability")] == columns
    np.testing.assert_allclose(frame[columns].sum(axis=1), 1, atol=1e-5)
    assert metrics["test"]["mcc"] > 0.6
    assert metrics["test"] == pytest.approx(
        classification_metrics(frame["label"], frame[columns].to_numpy())
    )


def test_the_kmer_baseline(tables, tmp_path):
    finetune(**tables, out=tmp_path / "r", model="kmer")
    metrics = metrics_of(tmp_path / "r")
    assert metrics["test"]["mcc"] > 0.8
    assert metrics["method"].startswith("logistic regression on ")
    assert metrics["best_epoch"] is None
    assert not (tmp_path / "r" / "checkpoints").exists()
    assert len(predictions_of(tmp_path / "r", "train")) == SIZES["train"]


def test_kmers_give_a_class_that_was_not_drawn_no_probability(make_tables, tmp_path):
    tables = dict(make_tables(classes=3))
    frame = pd.read_csv(tables["train"])
    # One row of class 1 in many, which a draw of twenty misses.
    rare = pd.concat([frame[frame.label != 1], frame[frame.label == 1].head(1)])
    tables["train"] = tmp_path / "train.csv"
    rare.to_csv(tables["train"], index=False)
    finetune(**tables, out=tmp_path / "r", model="kmer", rows=20, seed=1)
    counts = json.loads((tmp_path / "r" / "manifest.json").read_text())["counts"]
    assert counts["train"]["1"] == 0
    assert predictions_of(tmp_path / "r", "test")["probability_1"].eq(0).all()


@pytest.mark.usefixtures("small_cnn")
def test_early_stopping_fires_and_the_best_epoch_is_used(noisy_tables, tmp_path):
    out = tmp_path / "r"
    finetune(**noisy_tables, out=out, model="cnn", **FAST | {"epochs": 60, "patience": 3})
    metrics, events = metrics_of(out), epochs_of(out)
    scores = [event["dev"]["mcc"] for event in events]
    assert len(events) == metrics["epochs"] == metrics["best_epoch"] + 3 < 60
    assert scores.index(max(scores)) + 1 == metrics["best_epoch"]
    # The predictions are the best epoch's, not the last one's.
    assert metrics["dev"]["mcc"] == max(scores) > scores[-1]
    best = load_file(out / "checkpoints" / "best" / "model.safetensors")
    last = torch.load(out / "checkpoints" / "last" / "state.pt", weights_only=True)
    assert best.keys() == last["model"].keys()
    assert not all(torch.equal(best[name], last["model"][name]) for name in best)
    assert last["progress"] == {"step": metrics["epochs"], "at_once": 16}


@pytest.mark.usefixtures("small_cnn")
def test_predictions_are_those_of_the_best_checkpoint(noisy_tables, tmp_path, monkeypatch):
    out = tmp_path / "r"
    settings = FAST | {"epochs": 6}
    finetune(**noisy_tables, out=out, model="cnn", **settings)
    before = predictions_of(out, "test")
    assert metrics_of(out)["best_epoch"] < 6
    # A run without results is taken up again: it only loads the best weights and predicts.
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "predictions")
    monkeypatch.setattr(loop.Finetuner, "_epoch", None)
    finetune(**noisy_tables, out=out, model="cnn", **settings, resume=True)
    pd.testing.assert_frame_equal(predictions_of(out, "test"), before, check_exact=True)


@pytest.mark.usefixtures("small_cnn")
@pytest.mark.parametrize("select", ["mcc", "f1", "auroc", "accuracy"])
def test_the_chosen_metric_chooses_the_epoch(noisy_tables, tmp_path, select):
    out = tmp_path / "r"
    settings = FAST | {"epochs": 5}
    finetune(**noisy_tables, out=out, model="cnn", **settings | {"select": select}, seed=1)
    scores = [event["dev"][select] for event in epochs_of(out)]
    assert len(scores) == 5
    assert metrics_of(out)["best_epoch"] == scores.index(max(scores)) + 1


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5])
@pytest.mark.usefixtures("small_cnn")
def test_a_run_killed_at_any_checkpoint_ends_as_the_uninterrupted_one(
    noisy_tables, tmp_path, monkeypatch, write
):
    """Each epoch logs, may write the best weights, and writes the last: five writes or more."""
    settings = FAST | {"epochs": 4, "model": "cnn"}
    finetune(**noisy_tables, out=tmp_path / "whole", **settings)
    writers, written = {name: getattr(loop, name) for name in ("save_state", "save_weights")}, []

    def killed(name, *args, **progress):
        written.append(name)
        if len(written) == write:
            raise KeyboardInterrupt
        writers[name](*args, **progress)

    for name in writers:
        monkeypatch.setattr(loop, name, partial(killed, name))
    with pytest.raises(KeyboardInterrupt):
        finetune(**noisy_tables, out=tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    for name, writer in writers.items():
        monkeypatch.setattr(loop, name, writer)
    finetune(**noisy_tables, out=tmp_path / "cut", **settings, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.part*"))


def test_a_lora_run_killed_within_an_epoch_ends_as_the_uninterrupted_one(
    tables, tiny, tmp_path, monkeypatch
):
    settings = FAST | {"epochs": 3, "model": str(tiny), "method": "lora"}
    finetune(**tables, out=tmp_path / "whole", **settings)
    real, steps = loop.Finetuner._step, []

    def killed(self, *args):
        steps.append(args)
        if len(steps) == 12:  # of 8 steps an epoch
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(loop.Finetuner, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(**tables, out=tmp_path / "cut", **settings)
    monkeypatch.setattr(loop.Finetuner, "_step", real)
    finetune(**tables, out=tmp_path / "cut", **settings, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_process_killed_at_random_ends_as_the_uninterrupted_one(tables, tiny, tmp_path, attempt):
    settings = FAST | {"epochs": 60, "model": str(tiny)}
    finetune(**tables, out=tmp_path / "whole", **settings)
    out = tmp_path / "cut"
    flags = {**tables, **settings, "out": out}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in flags.items()]
    program = "import sys; from cedilla.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "finetune", *words]
    # As many threads as here: sums of another number of parts end in other digits.
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, **quiet) as process:
        while not (out / "checkpoints" / "last").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.Random(time.time_ns() + attempt).uniform(0, 1.5))
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "metrics.json").exists()
    finetune(**tables, out=out, **settings, resume=True)
    assert_same(tmp_path / "whole", out)


def test_a_complete_run_is_not_repeated(run, tiny, tables):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    settings = FAST | {"epochs": 6}
    finetune(**tables, out=run, model=str(tiny), seed=3, **settings, resume=True)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
    with pytest.raises(InputError, match="holds a run already"):
        finetune(**tables, out=run, model=str(tiny), seed=3, **settings)
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        finetune(**tables, out=run, model=str(tiny), seed=4, **settings, resume=True)


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(tiny, tables, tmp_path, capsys):
    finetune(**tables, out=tmp_path / "r", model=str(tiny), method="lora", dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "128 train, 40 dev, 48 test rows" in said
    # Twice the dense layer of the block's own output and that of its attention.
    for kind in ("attention.self.query", "attention.self.key", "attention.self.value"):
        assert f"2 × {kind}" in said
    for kind in ("attention.output.dense", "intermediate.dense", "output.dense"):
        assert f"2 × {kind}" in said
    assert "minutes for 30 epochs" in said  # of few rows, as many as there are by default
    assert "GB of memory" in said
    finetune(**tables, out=tmp_path / "r", model="kmer", dry_run=True)
    assert not (tmp_path / "r").exists()


def test_of_many_training_rows_a_part_is_scored(tiny, tables, tmp_path, monkeypatch):
    monkeypatch.setattr("cedilla.training.finetune.TRAIN_SCORED", 50)
    for name, model in (("a", str(tiny)), ("k", "kmer")):
        finetune(**tables, out=tmp_path / name, model=model, **FAST, epochs=1)
        assert len(predictions_of(tmp_path / name, "train")) == 50
        assert metrics_of(tmp_path / name)["train"]["n"] == 50
        assert predictions_of(tmp_path / name, "train")["label"].nunique() == 2


def test_random_weights_are_another_start_than_the_models(tiny, tables, tmp_path):
    settings = {**tables, "model": str(tiny), **FAST, "epochs": 1}
    finetune(out=tmp_path / "a", **settings)
    finetune(out=tmp_path / "b", weights="random", **settings)
    first = [epochs_of(tmp_path / name)[0]["train_loss"] for name in ("a", "b")]
    assert first[0] != first[1]


def test_fewer_rows_are_drawn_by_the_seed(tiny, tables, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        finetune(
            **tables,
            out=tmp_path / name,
            model=str(tiny),
            rows=20,
            seed=seed,
            **FAST | {"epochs": 1},
        )
        counts = [len(predictions_of(tmp_path / name, split)) for split in SPLITS]
        assert counts == [20, 20, 48]
    drawn = [predictions_of(tmp_path / name, "train")["id"].astype(int) for name in ("a", "b")]
    assert set(drawn[0]) != set(drawn[1])
    assert drawn[0].is_monotonic_increasing
    given = pd.read_csv(tables["train"])["label"]
    assert predictions_of(tmp_path / "a", "train")["label"].tolist() == [
        given[i - 2] for i in drawn[0]
    ]


def test_impossible_settings_are_refused_together(tables, tmp_path):
    found = complaints(
        **tables,
        out=tmp_path / "r",
        epochs=0,
        batch_size=0,
        patience=-1,
        rows=1,
        rank=0,
        learning_rate=0.0,
        dropout=1.0,
    )
    names = " ".join(problem.split(": ")[1].split()[0] for problem in found)
    assert names == "epochs batch_size patience rank rows learning_rate dropout"


def test_patience_needs_a_metric_to_wait_for(tables, tmp_path):
    (problem,) = complaints(**tables, out=tmp_path / "r", patience=2)
    assert problem.endswith("none is selected; name one with --select")


@pytest.mark.usefixtures("small_cnn")
def test_the_last_epoch_is_kept_unless_a_metric_is_named(noisy_tables, tmp_path):
    out = tmp_path / "r"
    finetune(**noisy_tables, out=out, model="cnn", **FAST | {"epochs": 5, "select": "last"})
    assert metrics_of(out)["best_epoch"] == 5
    best = load_file(out / "checkpoints" / "best" / "model.safetensors")
    last = torch.load(out / "checkpoints" / "last" / "state.pt", weights_only=True)
    assert all(torch.equal(best[name], last["model"][name]) for name in best)


def test_settings_that_exclude_each_other(tables, tmp_path):
    out = tmp_path / "r"
    assert "--dev, --test not given" in complaints(out=out, train=tables["train"])[0]
    assert "exclude each other" in complaints(out=out, **tables, task="prom_core_all")[0]
    (problem,) = complaints(out=out, **tables, model="cnn", method="lora")
    assert problem.endswith("use --method full")


def test_labels_that_train_lacks_are_refused(tables, tmp_path, tiny):
    for label in (2, "x", -1):
        frame = pd.read_csv(tables["dev"]).astype({"label": object})
        frame.loc[3, "label"] = label
        path = tmp_path / "dev.csv"
        frame.to_csv(path, index=False)
        (problem,) = complaints(**{**tables, "dev": path}, out=tmp_path / "r", model=str(tiny))
        assert f"{path} line 5: label '{label}' is not usable" in problem


def test_problems_of_all_tables_come_at_once(tmp_path):
    paths = {split: tmp_path / f"{split}.csv" for split in SPLITS}
    paths["train"].write_text("sequence,label\nACXT,0\nACGT,1\n")
    paths["dev"].write_text("sequence,label\nACGT,0\nACGT,1\n")
    paths["test"].write_text("sequence,label\nACGT,1\nACGT,1\n")
    found = complaints(**paths, out=tmp_path / "r", model="kmer")
    assert [problem.split(": ")[0] for problem in found] == [
        f"{paths['train']} line 2",
        str(paths["test"]),
    ]


def test_sequences_beyond_the_context_are_refused_by_file_and_line(tables, tiny, tmp_path):
    paths = dict(tables)
    for split, line in (("train", 5), ("test", 7)):
        frame = pd.read_csv(tables[split])
        frame.loc[line - 2, "sequence"] = "ACG" * 64  # 65 tokens with <cls>
        paths[split] = tmp_path / f"{split}.csv"
        frame.to_csv(paths[split], index=False)
    found = complaints(**paths, out=tmp_path / "r", model=str(tiny))
    what = "has 65 tokens; the model takes 64; cut it, pass --long crop or tile, or take a model "
    what += "with a longer context"
    assert found == [f"{paths['train']} line 5: {what}", f"{paths['test']} line 7: {what}"]
