"""A run is a directory that is complete or can be taken up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cedilla.errors import InputError
from cedilla.run_directory import Run, find_runs

CONFIG = {"train": Path("a.csv"), "targets": ("query", "key"), "rate": 5e-5, "rows": None}


def start(path, *, resume=False, **changes):
    return Run.start(path, verb="finetune", config=CONFIG | changes, resume=resume)


def test_a_started_run_says_what_it_is(tmp_path):
    run = start(tmp_path / "r", resume=False, dry_run=True)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    # `resume` and `dry_run` are how a verb was called, not what it does.
    assert config == {"train": "a.csv", "targets": ["query", "key"], "rate": 5e-5, "rows": None}
    assert run.config == config
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["verb"] == "finetune"
    assert {"version", "started", "python", "platform", "libraries", "device"} <= manifest.keys()
    assert not run.complete


def test_metrics_complete_a_run_and_nan_becomes_null(tmp_path):
    run = start(tmp_path / "r")
    run.finish({"auroc": np.float32("nan"), "mcc": np.float64(0.5), "n": np.int64(3), "x": (1,)})
    assert run.complete
    assert run.metrics == {"auroc": None, "mcc": 0.5, "n": 3, "x": [1]}
    assert json.loads((run.path / "manifest.json").read_text())["seconds"] >= 0


def test_a_second_start_is_refused(tmp_path):
    start(tmp_path / "r")
    with pytest.raises(InputError, match="holds a run already; pass --resume"):
        start(tmp_path / "r")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        start(tmp_path / "file")


def test_other_settings_are_refused_by_name(tmp_path):
    start(tmp_path / "r")
    assert start(tmp_path / "r", resume=True).path == tmp_path / "r"
    with pytest.raises(InputError, match=r"other settings \(more, rate\)"):
        start(tmp_path / "r", resume=True, rate=1e-4, more=1)


def test_a_moved_run_is_resumed(tmp_path):
    start(tmp_path / "old", out=tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    run = start(tmp_path / "new", resume=True, out=tmp_path / "new")
    assert run.config["out"] == str(tmp_path / "new")


def test_a_complete_run_is_taken_up_untouched(tmp_path):
    (tmp_path / "a.csv").write_text("sequence,label\n")
    run = start(tmp_path / "r")
    run.note_data(tmp_path / "a.csv", role="train", rows=0)
    run.finish({"mcc": 1.0})
    before = {p: p.read_bytes() for p in run.path.iterdir()}
    again = start(tmp_path / "r", resume=True)
    assert again.complete
    assert {p: p.read_bytes() for p in run.path.iterdir()} == before
    assert again.manifest["data"][0]["role"] == "train"


def test_facts_and_data_files_are_noted(tmp_path):
    (tmp_path / "a.csv").write_text("sequence,label\n")
    run = start(tmp_path / "r")
    run.note(trained=Path("x"), loss=float("nan"))
    for role in ("train", "dev"):
        run.note_data(tmp_path / "a.csv", role=role, rows=7)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["trained"] == "x"
    assert manifest["loss"] is None
    assert [entry["role"] for entry in manifest["data"]] == ["train", "dev"]
    assert len(manifest["data"][0]["sha256"]) == 64


def test_events_survive_a_line_that_was_cut_off(tmp_path):
    run = start(tmp_path / "r")
    assert run.events() == []
    run.log(event="epoch", epoch=1, loss=float("nan"))
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"event": "epo')
    assert run.events() == [{"event": "epoch", "epoch": 1, "loss": None}]
    # What is logged next must not be glued to the stump.
    taken_up = start(tmp_path / "r", resume=True)
    taken_up.log(event="epoch", epoch=2)
    assert [event["epoch"] for event in taken_up.events()] == [1, 2]


def test_events_beyond_a_checkpoint_are_dropped(tmp_path):
    run = start(tmp_path / "r")
    for epoch in (1, 2, 3):
        run.log(event="epoch", epoch=epoch)
    assert [e["epoch"] for e in run.rewind(lambda event: event["epoch"] < 3)] == [1, 2]
    assert [e["epoch"] for e in run.events()] == [1, 2]


def test_predictions_are_parquet(tmp_path):
    run = start(tmp_path / "r")
    frame = pd.DataFrame({"id": ["b", "a"], "probability": [0.1, 0.9]})
    run.write_predictions("test", frame)
    read = pd.read_parquet(run.path / "predictions" / "test.parquet")
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    assert [p.name for p in (run.path / "predictions").iterdir()] == ["test.parquet"]


def test_complete_runs_are_found_in_order_of_their_start(tmp_path):
    for name, started in (("b", "2026-01-01"), ("a", "2026-01-02"), ("half", "2026-01-03")):
        run = start(tmp_path / "x" / name)
        run.note(started=started)
        if name != "half":
            run.finish({})
    (tmp_path / "metrics.json").write_text("{}")  # no run's
    found = find_runs(tmp_path)
    assert [run.path.name for run in found] == ["b", "a"]
    assert found[0].manifest["verb"] == "finetune"


def test_resuming_removes_the_drafts_of_a_kill(tmp_path):
    run = start(tmp_path / "r")
    draft = run.path / "checkpoints" / "last" / ".state.pt.4711.part.pt"
    draft.parent.mkdir(parents=True)
    draft.touch()
    start(tmp_path / "r", resume=True)
    assert not draft.exists()


def test_a_resumed_run_refuses_other_data_and_follows_moved_data(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("one")
    start(tmp_path / "r", train=data).note_data(data, role="train", rows=1)
    moved = data.rename(tmp_path / "b.csv")
    start(tmp_path / "r", resume=True, train=moved).note_data(moved, role="train", rows=1)
    moved.write_text("another")
    with pytest.raises(InputError, match="not the train file that the run"):
        start(tmp_path / "r", resume=True, train=moved).note_data(moved, role="train", rows=1)


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_strangers_manifest_beside_the_data_does_not_matter(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "a.csv").write_text("one")
    run = start(tmp_path / "r")
    run.note_data(tmp_path / "a.csv", role="train", rows=1)
    assert "synthetic" not in run.manifest
