"""The README and the guides: what they tell a reader to do works, and what they show is there."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import cedilla
from cedilla.cli import VERBS, bind
from cedilla.config import run
from cedilla.errors import InputError
from cedilla.models.cards import card
from cedilla.report.results import gather
from cedilla.run_directory import Run
from cedilla.tasks.published import published

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
GUIDES = [README, CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
NOTEBOOK = CHECKOUT / "notebooks" / "foundation_model_training.ipynb"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMES = [path.name for path in GUIDES]


def blocks(path: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text()) if kind == language]


def commands(path: Path) -> list[list[str]]:
    """The words of every command, without comments and without variables set in front."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [[w for w in line if not re.match(r"[A-Z_]+=", w)] for line in words if line]


def check_command(words: list[str]) -> None:
    """Parse a `cedilla` command by its own parser; find what any other one refers to."""
    match words:
        case ["cedilla", *tokens]:
            verb = next(v for v in VERBS if tokens[: len(v.split())] == v.split())
            bind(verb, tokens=tokens)
            model = tokens[tokens.index("--model") + 1] if "--model" in tokens else "mini"
            if "/" not in model:
                card(model)
        case ["make", target]:
            makefile = (CHECKOUT / "Makefile").read_text()
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
        case ["pip", "install", what]:
            assert (
                what == "." or f"pip install --quiet {what}" in (CHECKOUT / "Makefile").read_text()
            )
        case _:
            pytest.fail(f"no rule for {shlex.join(words)}")


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three_mers: Path) -> Path:
    """A folder to work in, with the tables and the trained model that the guides speak of."""
    trained = tmp_path / "runs" / "nt_3mer" / "pretraining" / "checkpoints" / "best"
    shutil.copytree(three_mers, trained)
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        letters = rng.choice(list("ACGT"), size=(24, 60))
        frame = pd.DataFrame({"sequence": ["".join(row) for row in letters]})
        frame["label"] = np.arange(24) % 2
        frame.to_csv(tmp_path / f"{split}.csv.gz", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES, ids=NAMES)
def test_every_command_parses(guide: Path) -> None:
    for words in commands(guide):
        check_command(words)


def test_the_commands_are_seen() -> None:
    found = [words for guide in GUIDES for words in commands(guide)]
    verbs = {" ".join(words[1:3]) for words in found if words[0] == "cedilla"}
    assert {"methylation check", "data get"} <= verbs
    assert ["make", "demo"] in found
    assert sum("--annotation" in words for words in found) >= 1, "a continued line is one command"


@pytest.mark.parametrize("guide", GUIDES, ids=NAMES)
def test_python_blocks_run(guide: Path, tables: Path) -> None:
    names: dict[str, object] = {}
    for number, code in enumerate(blocks(guide, "python"), start=1):
        exec(compile(code, f"{guide.name} block {number}", "exec"), names)
    assert bool(names) == bool(blocks(guide, "python"))


def test_the_start_takes_three_lines() -> None:
    lines = [line for line in blocks(README, "python")[0].splitlines() if line]
    assert len(lines) == 3


def test_yaml_blocks_are_checked_as_before_a_run(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = blocks(CHECKOUT / "docs" / "yaml.md", "yaml")
    for number, code in enumerate(found):
        config = tables / f"{number}.yaml"
        config.write_text(code)
        for short in (False, True):
            run(config, short=short, dry_run=True)
            for line in capsys.readouterr().out.splitlines():
                check_command(shlex.split(line))
    assert len(found) == 2


@pytest.mark.parametrize("guide", GUIDES, ids=NAMES)
def test_links_lead_somewhere(guide: Path) -> None:
    text = BLOCK.sub("", guide.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"[^!]\[[^]]*\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if not target.startswith("https://"):
            assert (guide.parent / path).exists(), target
            assert path or anchor in anchors, target


def test_the_figures_are_there() -> None:
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README.read_text())
    assert shown == ["docs/images/methylation.png"]
    assert (CHECKOUT / shown[0]).read_bytes().startswith(b"\x89PNG"), "copy it from the full run"


@pytest.mark.parametrize("guide", GUIDES, ids=NAMES)
def test_variables_of_the_environment_are_read_somewhere(guide: Path) -> None:
    source = "".join(path.read_text() for path in (CHECKOUT / "src").rglob("*.py"))
    for name in set(re.findall(r"CEDILLA_[A-Z]+", guide.read_text())):
        assert f'"{name}"' in source, name


def test_the_tree_names_every_file() -> None:
    root = CHECKOUT / "src" / "cedilla"
    files = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.stat().st_size and "__pycache__" not in path.parts
    }
    (tree,) = (code for code in blocks(README, "text") if code.startswith("src/cedilla/"))
    named, folders = set(), [""]
    for line in tree.splitlines()[1:]:
        name, *comment = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [folders[depth - 1] + name]
        if not name.endswith("/"):
            named.add(folders[depth])
            assert comment, f"{name} has no comment"
    assert files - named == set(), "not in the README's tree"
    assert named - files == set(), "only in the README's tree"


def documents() -> list[Path]:
    return [*GUIDES, CHECKOUT / "CHANGELOG.md", NOTEBOOK]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_numbers_of_published_models_are_the_published_ones(document: Path) -> None:
    tables = [published(task) for task in ("prom_core_all", "EMP/H3K4me3")]
    values = set(pd.concat(tables)["value_0to1"].map("{:.3f}".format))
    assert (
        set(re.findall(r"DNABERT\S*(?: \(3-mer\))?[ |]+(\d?\.\d+)", document.read_text())) <= values
    )


def test_licence_citation_and_changelog_agree() -> None:
    licence = (CHECKOUT / "LICENSE").read_text()
    assert "Apache License\n" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == cedilla.__version__
    assert citation["license"] == "Apache-2.0"
    assert cedilla.__version__ in (CHECKOUT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("beside", [True, False])
def test_ci_uses_the_data_beside_the_checkout(tmp_path: Path, beside: bool) -> None:
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    script = checkout / ".ci" / "run"
    script.write_text((CHECKOUT / ".ci" / "run").read_text())
    script.chmod((CHECKOUT / ".ci" / "run").stat().st_mode)
    (checkout / "Makefile").write_text('lint reference test:\n\t@echo "$@ with [$$CEDILLA_DATA]"\n')
    if beside:
        (tmp_path / "shared" / "data").mkdir(parents=True)
    # Without apt-get on the path nothing is installed.
    for name in ("bash", "make", "dirname", "echo"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(_which(name))
    done = subprocess.run(
        [script],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin"), "CEDILLA_DATA": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    data = tmp_path / "shared" / "data" if beside else ""
    targets = ("lint", "reference", "test")
    assert done.stdout.splitlines() == [f"{target} with [{data}]" for target in targets]


def _which(name: str) -> Path:
    folders = map(Path, os.environ["PATH"].split(os.pathsep))
    return next(folder / name for folder in folders if (folder / name).exists())


@pytest.fixture(scope="module")
def fill_numbers() -> ModuleType:
    path = CHECKOUT / "docs" / "fill_numbers.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small guide's experiment and a real comparison."""
    root = tmp_path_factory.mktemp("runs")
    data = cedilla.simulate(out=root / "guide" / "noisy" / "data", n=200, length=60, noise=0.25)
    cedilla.finetune(
        train=data / "train.parquet",
        dev=data / "dev.parquet",
        test=data / "test.parquet",
        model="kmer",
        out=root / "guide" / "noisy" / "sequence",
    )
    columns: dict[str, Any] = {"group": "split", "dev": "dev", "test": "test", "seeds": 1}
    cedilla.compare(
        str(data / "loci.parquet"), label="label", out=root / "guide" / "noisy" / "arms", **columns
    )
    table = pd.read_parquet(data / "loci.parquet").rename(columns={"label": "gm12878_H3K4me3"})
    table.to_parquet(root / "loci.parquet")
    Run.start(root / "real", verb="run", config={}).note(short=True)
    out = root / "real" / "arms"
    cedilla.compare(str(root / "loci.parquet"), label="gm12878_H3K4me3", out=out, **columns)
    return root


def filled(module: ModuleType, root: Path, *names: str) -> dict[str, str]:
    text = "".join(f"<!-- numbers:{name} -->\nold\n<!-- /numbers -->\n" for name in names)
    done, _ = module.fill(text, gather([root]))
    again, _ = module.fill(done, gather([root]))
    assert done == again, "filling twice changes nothing"
    bodies = re.findall(r"numbers:\S+ -->\n(.*?)\n<!-- /numbers", done, re.DOTALL)
    return dict(zip(names, bodies, strict=True))


def test_every_block_of_the_guides_can_be_filled(fill_numbers: ModuleType) -> None:
    text = "".join(guide.read_text() for guide in fill_numbers.DOCUMENTS)
    names = re.findall(r"<!-- numbers:(\S+) -->", text)
    assert set(names) == set(fill_numbers.BLOCKS)
    assert text.count("<!-- /numbers -->") == len(names) == len(fill_numbers.MARKED.findall(text))


def test_numbers_come_from_the_runs(fill_numbers: ModuleType, runs: Path) -> None:
    found = filled(fill_numbers, runs, "h3k4me3", "h3k4me3-differences", "guide")
    metrics = Run(runs / "real" / "arms").metrics
    arm = metrics["arms"]["sequence+beta"]
    low, high = arm["interval"]["auroc"]
    assert f"| sequence + beta | {arm['auroc']:.3f} ({low:.3f}–{high:.3f}) |" in found["h3k4me3"]
    assert metrics["verdict"]["sentence"] in found["h3k4me3"]
    assert all(f"- {limit}" in found["h3k4me3"] for limit in metrics["verdict"]["limits"])
    n = len(metrics["differences"])
    assert found["h3k4me3-differences"].count("\n") == n + 1
    scores = Run(runs / "guide" / "noisy" / "sequence").metrics["test"]
    row = [f"{scores[name]:.3f}" for name in ("accuracy", "f1", "precision", "recall")]
    assert f"| 0.25 | test | {' | '.join(row)} |" in found["guide"]
    assert "| 0.25 | beta threshold | 1.000 (" in found["guide"]


def test_without_its_run_a_block_stays(fill_numbers: ModuleType, runs: Path) -> None:
    text = "<!-- numbers:h3k4me3 -->\nold\n<!-- /numbers -->"
    assert fill_numbers.fill(text, gather([runs / "guide"])) == (
        text,
        [
            "h3k4me3 stays as it is: comparison on gm12878_H3K4me3: no such run was given; "
            "`cedilla run methylation_h3k4me3`"
        ],
    )


@pytest.mark.skipif("CEDILLA_DATA" not in os.environ, reason="CEDILLA_DATA is not set")
def test_the_facts_about_the_27k_table_are_those_of_the_table(
    fill_numbers: ModuleType, runs: Path
) -> None:
    found = filled(fill_numbers, runs, "hm27")["hm27"]
    assert "| Loci; with a beta | 27,578; 25,978 |" in found
    assert found in (CHECKOUT / "docs" / "methylation.md").read_text()


def test_a_short_form_says_so(fill_numbers: ModuleType, runs: Path) -> None:
    found = filled(fill_numbers, runs, "h3k4me3", "guide")
    assert "Short form" in found["h3k4me3"]
    assert "Short form" not in found["guide"]


def test_two_runs_of_one_experiment_are_refused(fill_numbers: ModuleType, runs: Path) -> None:
    text = "<!-- numbers:guide -->\nold\n<!-- /numbers -->"
    copied = runs / "guide" / "copied"
    shutil.copytree(runs / "guide" / "noisy", copied)
    with pytest.raises(InputError, match="stands in several runs"):
        fill_numbers.fill(text, gather([runs]))
    shutil.rmtree(copied)
