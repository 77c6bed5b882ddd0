"""The demo in full needs minutes; here it runs with tiny experiments, with and without data."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml

from cedilla import demo as demo_verb
from cedilla.config import load_packaged
from cedilla.run_directory import find_runs


@pytest.fixture
def tiny_experiments(tmp_path, monkeypatch):
    """The packaged files, their training reduced to the k-mer baseline."""

    def tiny(name: str) -> Path:
        document = yaml.safe_load(load_packaged(name).read_text())
        for step in document["steps"]:
            ((verb, given),) = step.items()
            given.pop("short", None)
            if verb == "methylation simulate":
                given |= {"n": 60, "length": 80}
            if verb == "finetune":
                given |= {"model": "kmer", "rows": 40}
                given.pop("weights", None)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    monkeypatch.setattr(importlib.import_module("cedilla.demo"), "load_packaged", tiny)
    monkeypatch.setattr("cedilla.evaluation.learners.ITERATIONS", 12)


@pytest.mark.usefixtures("tiny_experiments")
def test_without_data_it_runs_the_guide_and_says_what_was_left_out(tmp_path, monkeypatch):
    monkeypatch.delenv("CEDILLA_DATA", raising=False)
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    page = demo_verb(out=tmp_path / "demo").read_text()
    left_out = [
        sentence
        for name in ("guide", "methylation_h3k4me3", "gue")
        for sentence in json.loads((tmp_path / "demo" / name / "manifest.json").read_text())[
            "left_out"
        ]
    ]
    assert len(find_runs(tmp_path / "demo")) == 4
    assert len(left_out) == len(set(left_out)) == 3
    assert "CEDILLA_DATA" in page
    assert "hm27" in page
    # A second call finds everything done, and an interrupted one would go on.
    assert demo_verb(out=str(tmp_path / "demo")).exists()
