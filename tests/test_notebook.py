"""The notebook runs from top to bottom, as it stands, and shows what it promises."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "foundation_model_training.ipynb"
STEPS = (
    "Install", "Configuration", "Synthetic data", "Validation", "Data sets", "Model and LoRA",
    "Training", "What methylation adds", "A public benchmark", "Plots", "Conclusions",
)  # fmt: skip


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nbformat.NotebookNode]:
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CEDILLA_OFFLINE", "1")
        patch.setenv("CEDILLA_CACHE", str(folder / "cache"))
        # The notebook chooses the look of its figures itself.
        patch.delenv("MPLBACKEND", raising=False)
        client = NotebookClient(
            nbformat.read(NOTEBOOK, as_version=4),
            timeout=300,
            resources={"metadata": {"path": str(folder)}},
        )
        yield client.execute()


def cell(notebook: nbformat.NotebookNode, beginning: str) -> nbformat.NotebookNode:
    """The code cell in which a line begins so."""
    (found,) = (
        c
        for c in notebook.cells
        if c.cell_type == "code" and re.search(f"^ *{re.escape(beginning)}", c.source, re.MULTILINE)
    )
    return found


def text(code: nbformat.NotebookNode) -> str:
    """What a cell printed and showed, as text."""
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in code.outputs]
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(parts))


def test_it_is_valid_and_has_no_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)


def test_its_steps_are_numbered_and_explained(notebook: nbformat.NotebookNode) -> None:
    titles = [
        title
        for c in notebook.cells
        if c.cell_type == "markdown"
        for title in re.findall(r"^## (.*)", c.source, re.MULTILINE)
    ]
    for number, (title, step) in enumerate(zip(titles, STEPS, strict=True), start=1):
        assert title.startswith(f"{number}. {step}")


def test_validation_finds_the_mistakes_that_were_put_in(executed: nbformat.NotebookNode) -> None:
    assert "free of errors: True" in text(cell(executed, "validator = "))
    spoilt = text(cell(executed, "spoilt = "))
    for finding in (
        "free of errors: False",
        "3 errors",
        "beta 1.7",
        "coverage '-1'",
        "position 512",
    ):
        assert finding in spoilt


def test_lora_trains_the_layers_that_it_names(executed: nbformat.NotebookNode) -> None:
    shown = text(cell(executed, "lora = Adapter"))
    for name in ("self.query", "self.key", "self.value", "attention.output.dense"):
        assert re.search(rf"\d+ × (attention\.)?{re.escape(name)}", shown)
    assert re.search(r"[\d,]+ of [\d,]+ parameters \(\d\.\d\d%\)", shown)


def test_the_clean_task_is_learned_and_the_noisy_one_is_not(
    executed: nbformat.NotebookNode,
) -> None:
    rows = text(cell(executed, "columns = ")).splitlines()
    mcc = [float(re.findall(r"-?\d\.\d+", row)[4]) for row in rows if " test " in row]
    assert len(mcc) == 2
    assert mcc[0] >= 0.75
    assert mcc[1] <= 0.75


def test_the_bare_threshold_stands_beside_the_arms(executed: nbformat.NotebookNode) -> None:
    shown = text(cell(executed, "arms = "))
    assert all(arm in shown for arm in ("sequence", "shuffled", "missing", "beta threshold"))


def test_gue_is_run_or_what_is_missing_is_said(executed: nbformat.NotebookNode) -> None:
    shown = text(cell(executed, "from cedilla.errors import MissingData"))
    if "CEDILLA_DATA" in os.environ:
        assert re.search(r"test MCC \d\.\d+; protocol: different split", shown)
    else:
        assert "GUE is left out." in shown
        assert "cedilla data get prom/prom_core_all" in shown
    assert "DNABERT-2" in text(cell(executed, "published("))


def test_the_figures_are_shown(executed: nbformat.NotebookNode) -> None:
    outputs = cell(executed, "page = ").outputs
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
