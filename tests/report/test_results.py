"""Which runs a report finds, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cedilla.errors import InputError
from cedilla.report.results import gather
from cedilla.run_directory import Run


def test_an_experiment_is_its_steps_in_order_of_their_start(experiment: Path) -> None:
    gathered = gather([experiment])
    assert {result.name for result in gathered.results} == {
        "h3k4me3",
        "gue/core-mini",
        "gue/core-cnn",
        "gue/yeast-mini",
        "guide-clean",
    }
    assert [parent.run.manifest["title"] for parent in gathered.parents] == [
        "The guide's experiment"
    ]
    assert gathered.unfinished == []
    assert [r.name for r in gathered.results if r.synthetic] == ["guide-clean"]


def test_a_run_inside_a_run_is_a_part_of_it(tmp_path: Path, finetuned: Any) -> None:
    finetuned(tmp_path / "whole")
    finetuned(tmp_path / "whole" / "cells" / "a-0")
    assert [result.name for result in gather([tmp_path]).results] == ["whole"]


def test_unfinished_runs_are_named_and_simulated_data_is_no_run(
    tmp_path: Path, finetuned: Any
) -> None:
    finetuned(tmp_path / "done")
    Run.start(tmp_path / "begun", verb="finetune", config={})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"verb": "methylation simulate"}')
    gathered = gather([tmp_path])
    assert [result.name for result in gathered.results] == ["done"]
    assert gathered.unfinished == ["begun"]


def test_several_directories_keep_their_names_and_none_is_listed_twice(
    tmp_path: Path, finetuned: Any
) -> None:
    finetuned(tmp_path / "a" / "x")
    finetuned(tmp_path / "b")
    gathered = gather([tmp_path / "a", tmp_path / "b", tmp_path / "b"])
    assert sorted(result.name for result in gathered.results) == ["a/x", "b"]


def test_every_unusable_directory_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Run.start(tmp_path / "broken", verb="finetune", config={})
    (tmp_path / "broken" / "metrics.json").write_text('{"test": ')
    with pytest.raises(InputError) as caught:
        gather([tmp_path / "absent", tmp_path / "empty", tmp_path / "broken"])
    where = [problem.where for problem in caught.value.problems]
    assert [Path(place).name for place in where] == ["absent", "empty", "metrics.json"]
    assert all(problem.mend for problem in caught.value.problems)


def test_a_comparison_without_arms_is_an_error_that_names_its_file(
    tmp_path: Path, compared: Any
) -> None:
    compared(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"label": "x"}))
    with pytest.raises(InputError, match=r"metrics\.json: has no arms"):
        gather([tmp_path])
