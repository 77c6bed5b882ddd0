"""YAML files: checked whole before anything runs, then carried out step by step."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from cedilla.cli import bind, main
from cedilla.config import load_packaged, run
from cedilla.errors import InputError, MissingData
from cedilla.run_directory import find_runs

SIMULATE = {"n": 40, "length": 60, "out": "{out}/data", "short": {"n": 20}}
CONFIGS = Path(load_packaged.__code__.co_filename).parent / "configs"


@pytest.fixture
def write(tmp_path):
    def _write(document) -> Path:
        path = tmp_path / "experiment.yaml"
        text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
        path.write_text(text)
        return path

    return _write


def experiment(tmp_path: Path, *steps) -> dict:
    return {
        "title": "A title",
        "about": "A paragraph.",
        "out": str(tmp_path / "whole"),
        "steps": [{"methylation simulate": SIMULATE}, *steps],
    }


def complaints(path: Path, **arguments) -> list[str]:
    with pytest.raises(InputError) as caught:
        run(path, **arguments)
    return [str(problem).replace(str(path), "FILE") for problem in caught.value.problems]


def simulated(out: Path) -> int:
    return json.loads((out / "data" / "manifest.json").read_text())["parameters"]["n"]


def test_the_steps_are_carried_out_and_written_down(write, tmp_path):
    path = write(experiment(tmp_path, {"methylation check": {"path": "{out}/data/calls.parquet"}}))
    out = run(path)
    assert out == tmp_path / "whole"
    assert simulated(out) == 40
    effective = yaml.safe_load((out / "config.yaml").read_text())
    assert effective["steps"][0] == {
        "methylation simulate": {"n": 40, "length": 60, "out": "{out}/data"}
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verb"] == "run"
    assert (manifest["title"], manifest["about"]) == ("A title", "A paragraph.")
    assert (manifest["short"], manifest["left_out"], manifest["complete"]) == (False, [], True)
    assert find_runs(out) == []


def test_the_effective_file_can_be_run_again(write, tmp_path):
    out = run(write(experiment(tmp_path)))
    again = run(out / "config.yaml", dry_run=True)
    assert again == out


def test_the_short_form_replaces_arguments_and_says_so(write, tmp_path):
    out = run(write(experiment(tmp_path)), short=True, out=tmp_path / "elsewhere")
    assert out == tmp_path / "elsewhere"
    assert simulated(out) == 20
    assert json.loads((out / "manifest.json").read_text())["short"] is True
    assert (
        yaml.safe_load((out / "config.yaml").read_text())["steps"][0]["methylation simulate"]["n"]
        == 20
    )


def test_every_mistake_of_a_file_is_told_before_anything_runs(write, tmp_path):
    document = experiment(
        tmp_path,
        {"methylation simulte": {}},
        {"methylation simulate": {"lngth": 5, "n": "many", "noise": [0, 1]}},
        {"report": {"run": ["{out}"]}},
        {"methylation check": {"path": "a.csv", "short": {"percnt": True}}},
        {"models": {"only_if_data": "maybe"}},
        {"run": {"config": "other.yaml"}},
        ["report"],
        "report",
    )
    path = write({**document, "tilte": "A title"})
    found = complaints(path)
    expected = [
        "FILE: there is no setting tilte; did you mean title?",
        "FILE step 2: there is no verb methylation simulte; did you mean methylation simulate?",
        "FILE step 3 (methylation simulate): there is no setting lngth; did you mean length?",
        "FILE step 3 (methylation simulate): noise takes one value, not [0, 1]",
        "FILE step 3 (methylation simulate): out is missing;"
        " see cedilla methylation simulate --help",
        "FILE step 3 (methylation simulate): invalid value for n:"
        ' unable to convert "many" into int',
        "FILE step 4 (report): there is no setting run; did you mean runs?",
        "FILE step 4 (report): runs is missing; see cedilla report --help",
        "FILE step 5 (methylation check): there is no setting percnt; did you mean percent?",
        "FILE step 6 (models): only_if_data is 'maybe'; write true or false",
        "FILE step 8: is not one verb with its arguments; write - verb: {…}",
        "FILE step 9 (report): runs is missing; see cedilla report --help",
    ]
    assert sorted(expected) == sorted(line for line in found if "verb run" not in line)
    assert any(line.startswith("FILE step 7: there is no verb run;") for line in found)
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps: [", "FILE line 1: is not YAML: expected the node content"),
        (
            "title: a\nsteps: []\ntitle: b\n",
            "FILE line 3: is not YAML: the key 'title' stands twice",
        ),
        ("steps:\n- models: {a: 1, a: 2}\n", "FILE line 2: is not YAML: the key 'a' stands twice"),
        ("title: a\n", "FILE: has no list of steps; write steps: and - verb: {…} below"),
        ("- models\n", "FILE: has no list of steps"),
        ("", "FILE: has no list of steps"),
        ("steps: !!python/object/apply:os.getcwd []\n", "FILE line 1: is not YAML: could not"),
    ],
)
def test_what_is_no_experiment(write, text, problem):
    assert complaints(write(text))[0].startswith(problem)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is no file, nor a name that comes along"):
        run(Path("zzz"))
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="is a directory"):
        run(tmp_path)


def test_a_dry_run_prints_the_commands(write, tmp_path, capsys):
    check = {"path": "a b.csv", "percent": True, "base0": False}
    steps = [{"report": {"runs": ["{out}", "b"]}}, {"methylation check": check}]
    document = experiment(tmp_path, *steps)
    document["steps"][0]["methylation simulate"] = {**SIMULATE, "splits": [0.8, 0.1, 0.1]}
    run(write(document), dry_run=True)
    out = tmp_path / "whole"
    commands = capsys.readouterr().out.splitlines()
    assert commands == [
        f"cedilla methylation simulate --n=40 --length=60 --out={out}/data --splits 0.8 0.1 0.1",
        f"cedilla report --runs={out} --runs=b",
        "cedilla methylation check '--path=a b.csv' --percent --no-base0",
    ]
    for command in commands:
        words = shlex.split(command)[1:]
        bind(" ".join(words[:2]) if words[0] == "methylation" else words[0], tokens=words)
    assert not out.exists()


def test_a_run_is_not_overwritten_but_resumed(write, tmp_path):
    path = write(experiment(tmp_path))
    run(path)
    assert complaints(path) == [
        f"{tmp_path}/whole: holds a run already; pass --resume, or choose another --out"
    ]
    assert run(path, resume=True) == tmp_path / "whole"
    assert "holds a run with other settings (steps)" in complaints(path, resume=True, short=True)[0]


@pytest.fixture
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CEDILLA_DATA", raising=False)


@pytest.mark.usefixtures("_offline")
def test_a_step_without_its_data_is_left_out_and_named(write, tmp_path, capsys):
    get = {"data get": {"task": "prom_core_tata", "only_if_data": True}}
    out = run(write(experiment(tmp_path, get, "models")))
    (sentence,) = json.loads((out / "manifest.json").read_text())["left_out"]
    assert sentence.startswith("data get left out: prom/prom_core_tata train: is missing")
    assert "cedilla data get" in sentence
    assert "Models" in capsys.readouterr().out


@pytest.mark.usefixtures("_offline")
def test_missing_data_stops_a_step_that_needs_it(write, tmp_path):
    with pytest.raises(MissingData):
        run(write(experiment(tmp_path, {"data get": {"task": "prom_core_tata"}})))
    assert "complete" not in json.loads((tmp_path / "whole" / "manifest.json").read_text())


@pytest.mark.usefixtures("_offline")
def test_the_data_folder_is_passed_down(write, tmp_path):
    steps = experiment(tmp_path, {"data get": {"task": "prom_core_tata"}})
    with pytest.raises(InputError, match="is not a folder"):
        run(write(steps), data_dir=tmp_path / "nowhere")


def test_the_same_from_the_command_line(write, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", str(write(experiment(tmp_path))), "--short"])
    assert caught.value.code == 0
    assert simulated(tmp_path / "whole") == 20


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_comes_along_can_be_run(path, capsys):
    run(Path(path.stem), dry_run=True)
    run(path, dry_run=True, short=True)
    assert load_packaged(path.stem) == path


@pytest.mark.parametrize(
    "text",
    [
        "steps: [finetune: abc]",
        "steps: [finetune: {short: 5}]",
        "out: 5\nsteps: []",
        "? [a, b]\n: 1\nsteps: []",
        "steps: [\x01]",
    ],
)
def test_whatever_the_file_holds_the_answer_is_one_clear_error(write, text):
    assert complaints(write(text))


def test_a_moved_experiment_is_taken_up_again(write, tmp_path):
    path = write(experiment(tmp_path))
    run(path)
    moved = (tmp_path / "whole").rename(tmp_path / "elsewhere")
    assert run(path, out=moved, resume=True) == moved
