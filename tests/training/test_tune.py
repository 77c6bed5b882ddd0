"""A search over settings: what it finds, leaves, takes up again, and never opens."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from cedilla.cli import bind
from cedilla.config import run as run_file
from cedilla.errors import InputError
from cedilla.models import zoo
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.training import loop, suggestions
from cedilla.training.search_space import read_space

pytest.importorskip("optuna", reason="the extra `tune` is not installed")
from cedilla.training.tune import tune

SEARCH = {
    "learning_rate": {"low": "1e-6", "high": "2e-2", "log": True},
    "dropout": [0.0, 0.6],
}
FIXED = {"model": "cnn", "batch_size": 32, "epochs": 3, "strands": False}
TRIALS = 8
SEED = 1


@pytest.fixture(scope="module", autouse=True)
def _narrow_cnn():
    with pytest.MonkeyPatch.context() as patch:
        shape = CNNConfig(hidden_size=16, num_hidden_layers=2)
        patch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
        yield


@pytest.fixture(scope="module")
def write_space(tmp_path_factory, tables):
    """Write a space over the tables, whose test set does not exist; returns its path."""

    def write(search=SEARCH, **fixed):
        path = tmp_path_factory.mktemp("space") / "space.yaml"
        named = {split: str(tables[split]) for split in ("train", "dev")}
        absent = {"test": str(path.parent / "absent.csv")}
        document = {"fixed": named | absent | FIXED | fixed, "search": search}
        path.write_text(yaml.safe_dump(document))
        return path

    return write


@pytest.fixture(scope="module")
def space(write_space):
    return write_space()


@pytest.fixture(scope="module")
def search(tmp_path_factory, space):
    """One complete search, which several tests read."""
    out = tmp_path_factory.mktemp("search") / "search"
    assert tune(space, out=out, trials=TRIALS, seed=SEED) == out
    return out


def table_of(out) -> pd.DataFrame:
    numbers = {"number": int, "epochs": int}
    table = pd.read_csv(out / "trials.csv", keep_default_na=False, dtype=str)
    return table.drop(columns="seconds").astype(numbers)


def best_of(out) -> dict:
    return json.loads((out / "metrics.json").read_text())["best"]


def assert_same(a, b) -> None:
    """Two searches agree bit for bit in their trials and in what came out."""
    pd.testing.assert_frame_equal(table_of(a), table_of(b), check_exact=True)
    assert (a / "metrics.json").read_text() == (b / "metrics.json").read_text()
    assert best_of(a) == best_of(b)


def test_it_finds_the_better_settings(search):
    table = table_of(search)
    assert table["number"].tolist() == list(range(1, TRIALS + 1))
    complete = table[table["state"] == "complete"]
    scores = complete["mcc"].astype(float)
    best = best_of(search)
    assert best["score"] == scores.max() > 0.6 > scores.min()
    assert best["trial"] == complete["number"][scores.idxmax()]
    assert best["settings"]["learning_rate"] > 1e-3


def test_trials_are_runs_of_finetune_without_test(search):
    for number, state, epochs in table_of(search)[["number", "state", "epochs"]].values:
        folder = search / "trials" / f"{number:04d}"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["dev_only"] is True
        if state == "complete":
            metrics = json.loads((folder / "metrics.json").read_text())
            assert "dev" in metrics
            assert "test" not in metrics
            assert epochs == FIXED["epochs"]
        for weights in ("checkpoints/best", "model"):
            assert (folder / weights).exists() == (number == best_of(search)["trial"])
        assert not (folder / "checkpoints" / "last").exists()


def test_bad_trials_are_pruned(search):
    table = table_of(search)
    pruned = table[table["state"] == "pruned"]
    assert len(pruned) >= 1
    assert (pruned["number"] > suggestions.AT_LEAST).all()
    assert (pruned["epochs"] < FIXED["epochs"]).any()
    assert (pruned["mcc"] == "").all()
    assert pruned["reason"].str.startswith("after epoch ").all()
    counts = json.loads((search / "metrics.json").read_text())
    assert counts["pruned"] == len(pruned)
    assert counts["complete"] + counts["pruned"] + counts["failed"] == counts["trials"] == TRIALS


def test_the_best_settings_are_trained_with_and_test_opened(
    search, space, tables, tmp_path, capsys
):
    document = yaml.safe_load((search / "best.yaml").read_text())
    written = document["steps"][0]["finetune"]
    assert "dev_only" not in written
    absent = yaml.safe_load(space.read_text())["fixed"]["test"]
    assert written["test"] == absent
    written["test"] = str(tables["test"])
    final = tmp_path / "best.yaml"
    final.write_text(yaml.safe_dump(document))
    run_file(final, out=tmp_path / "best")
    metrics = json.loads((tmp_path / "best" / "finetune" / "metrics.json").read_text())
    # The same settings and seed: what is trained now is what was chosen.
    assert metrics["dev"]["mcc"] == best_of(search)["score"]
    assert metrics["test"]["mcc"] > 0.5


def test_the_command_is_printed(tiny, write_space, tmp_path, capsys):
    names = {"method": ["top", "head"], "top_layers": [1]}
    space = write_space(names, model=str(tiny), epochs=1, learning_rate=1e-2)
    tune(space, out=tmp_path / "s", trials=20)
    said = capsys.readouterr()
    assert "every point of the space is a trial: 2" in said.err
    words = shlex.split(said.out)
    assert words[:2] == ["cedilla", "finetune"]
    called = bind("finetune", tokens=words[1:]).keywords
    assert called["learning_rate"] == 1e-2
    assert called["test"].name == "absent.csv"
    assert "dev_only" not in called
    best = best_of(tmp_path / "s")["settings"]
    assert called["method"] == best["method"]
    assert called.get("top_layers") == (1 if best["method"] == "top" else None)
    # The head has no layers.
    table = table_of(tmp_path / "s").set_index("method")["top_layers"].to_dict()
    assert {method: layers[:1] for method, layers in table.items()} == {"top": "1", "head": ""}


def test_the_same_seed_gives_the_same_trials_and_more_can_follow(search, space, tmp_path):
    tune(space, out=tmp_path / "s", trials=5, seed=SEED)
    pd.testing.assert_frame_equal(table_of(tmp_path / "s"), table_of(search)[:5], check_exact=True)
    before = (tmp_path / "s" / "trials.csv").stat().st_mtime_ns
    tune(space, out=tmp_path / "s", trials=5, seed=SEED, resume=True)
    assert (tmp_path / "s" / "trials.csv").stat().st_mtime_ns == before
    tune(space, out=tmp_path / "s", trials=TRIALS, seed=SEED, resume=True)
    assert_same(search, tmp_path / "s")
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        tune(space, out=tmp_path / "s", trials=TRIALS, seed=SEED + 1, resume=True)
    with pytest.raises(InputError, match="holds a run already"):
        tune(space, out=tmp_path / "s", trials=TRIALS, seed=SEED)


def test_a_search_killed_again_and_again_ends_as_the_uninterrupted_one(
    search, space, tmp_path, monkeypatch
):
    """Killed before the second checkpoint, then after the one at which a trial is pruned."""
    table = table_of(search)
    pruned = table.index[table["state"] == "pruned"][0]
    until = table["epochs"][: pruned + 1].sum() - 1  # the first was written before
    real, times = loop.save_state, {}
    for last, cut in ((2, True), (until, False)):
        written: list[object] = []

        def killed(*args, written=written, last=last, cut=cut, **progress):
            written.append(args)
            if len(written) < last or not cut:
                real(*args, **progress)
            if len(written) == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(loop, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(space, out=tmp_path / "s", trials=TRIALS, seed=SEED, resume=bool(times))
        finished = (tmp_path / "s").glob("trials/*/*.json")
        times = {path: path.stat().st_mtime_ns for path in finished}
    monkeypatch.setattr(loop, "save_state", real)
    tune(space, out=tmp_path / "s", trials=TRIALS, seed=SEED, resume=True)
    assert_same(search, tmp_path / "s")
    complete = {path: time for path, time in times.items() if path.name == "metrics.json"}
    assert len(complete) >= 5
    assert {path: path.stat().st_mtime_ns for path in complete} == complete


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_a_process_killed_at_random_ends_as_the_uninterrupted_one(
    tiny, write_space, tmp_path, attempt
):
    space = write_space(SEARCH, model=str(tiny), epochs=8)
    tune(space, out=tmp_path / "whole", trials=TRIALS, seed=attempt)
    call = f"tune(Path({str(space)!r}), out=Path({str(tmp_path / 'cut')!r}), trials={TRIALS}"
    program = (
        "from pathlib import Path; from cedilla.training.tune import tune; import torch; "
        f"torch.set_num_threads({torch.get_num_threads()}); {call}, seed={attempt})"
    )
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], **quiet) as process:
        while not (tmp_path / "cut" / "trials").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.Random(time.time_ns() + attempt).uniform(0, 3))
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    tune(space, out=tmp_path / "cut", trials=TRIALS, seed=attempt, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_other_data_than_a_search_began_with_are_refused(write_space, tables, tmp_path):
    train = tmp_path / "train.csv"
    frame = pd.read_csv(tables["train"])
    frame.to_csv(train, index=False)
    space = write_space({"learning_rate": [1e-2, 1e-3]}, train=str(train))
    tune(space, out=tmp_path / "s", trials=1)
    frame[:100].to_csv(train, index=False)
    with pytest.raises(InputError, match="began with other files"):
        tune(space, out=tmp_path / "s", trials=2, resume=True)


def test_a_failed_trial_says_why_and_the_search_goes_on(write_space, tmp_path, monkeypatch, capsys):
    forward = SequenceClassifier.forward

    def with_little_memory(self, *args):
        if self.head.dropout.p > 0.5:
            raise torch.OutOfMemoryError("a device of 1 GB")
        return forward(self, *args)

    monkeypatch.setattr(SequenceClassifier, "forward", with_little_memory)
    rates = {"learning_rate": [1e-2, 1e30], "dropout": [0.0, 0.6]}
    tune(write_space(rates, epochs=1), out=tmp_path / "s", trials=4)
    table = table_of(tmp_path / "s").astype({"learning_rate": float, "dropout": float})
    table = table.set_index(["learning_rate", "dropout"])
    assert len(table) == 4
    assert (table["state"] == "failed").sum() == 3
    assert table.loc[(1e-2, 0.0), "state"] == "complete"
    assert "the loss is not finite" in table.loc[(1e30, 0.0), "reason"]
    assert table.loc[(1e-2, 0.6), "reason"] == "out of memory: a device of 1 GB"
    assert "failed: out of memory: a device of 1 GB" in capsys.readouterr().err

    with pytest.raises(InputError, match="no trial is complete: 2 × out of memory"):
        tune(write_space(rates | {"dropout": [0.6]}), out=tmp_path / "t", trials=4)
    assert not (tmp_path / "t" / "metrics.json").exists()


def test_the_direction_is_that_of_the_metric(write_space, tmp_path):
    space = write_space({"learning_rate": [1e-7, 1e-2]}, select="loss")
    tune(space, out=tmp_path / "s", trials=2)
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text())
    assert (metrics["metric"], metrics["direction"]) == ("loss", "lower")
    assert metrics["best"]["settings"] == {"learning_rate": 1e-2}
    assert metrics["best"]["score"] == table_of(tmp_path / "s")["loss"].astype(float).min()
    with pytest.raises(InputError, match="select mc"):
        tune(write_space(select="mc"), out=tmp_path / "t")


def test_a_dry_run_says_what_the_trials_would_take_and_writes_nothing(space, tmp_path, capsys):
    tune(space, out=tmp_path / "s", trials=30, dry_run=True)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("128 train, 40 dev rows") == 3
    assert "minutes for 3 epochs" in said
    assert "30 trials of 0." in said
    assert not (tmp_path / "s").exists()


def test_the_space_of_the_guide_is_one(tmp_path):
    guide = Path(__file__).parents[2] / "docs" / "tune.md"
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE)
    path = tmp_path / "space.yaml"
    path.write_text(block)
    space = read_space(path)
    assert space.search["targets"].size == 2
    assert space.fixed["task"] == "prom_core_all"


def test_bad_input_is_refused_before_anything_is_written(write_space, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="trials 0 is impossible"):
        tune(write_space(), out=tmp_path / "s", trials=0)
    with pytest.raises(InputError, match=r"absent\.csv"):
        tune(write_space(dev="absent.csv"), out=tmp_path / "s")
    monkeypatch.setattr(suggestions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"optuna not installed; pip install 'cedilla\[tune\]'"):
        tune(write_space(), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
