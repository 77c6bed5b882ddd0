"""The complete runs under some directories, each read once, with what is unfinished or broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cedilla.errors import Problem, stop_on_errors
from cedilla.run_directory import Run, find_runs

PARENTS = ("run", "demo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run: what it was told, what it noted, what came out (nothing where it is unfinished)."""

    name: str
    run: Run
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def verb(self) -> str:
        return str(self.run.manifest.get("verb", "run"))

    @property
    def parent(self) -> bool:
        """Whether it only holds the runs of several steps."""
        return self.verb in PARENTS

    @property
    def synthetic(self) -> bool:
        """Whether its methylation came from ``methylation simulate``."""
        return bool(self.run.manifest.get("synthetic"))

    @property
    def model(self) -> str:
        return str(self.metrics.get("model", "unnamed model"))

    def predictions(self, split: str) -> pd.DataFrame | None:
        """``predictions/SPLIT.parquet``, or None where the run left none."""
        path = self.run.path / "predictions" / f"{split}.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def epochs(self) -> list[dict[str, Any]]:
        """The epochs logged, in order; empty for a model that has none, such as k-mers."""
        return [event for event in self.run.events() if event.get("event") == "epoch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """All that a report is made from.

    parents: directories that hold several runs; their manifests have a title and what was left
        out, and no results.
    unfinished: names of runs that were begun and have no results.
    """

    results: Sequence[Result]
    parents: Sequence[Result]
    unfinished: Sequence[str]

    def of(self, verb: str) -> list[Result]:
        return [result for result in self.results if result.verb == verb]


def gather(roots: Sequence[Path]) -> Gathered:
    """Read the runs at and below `roots`.

    A run inside a complete run of one verb is a part of it and is not listed on its own.

    Raises :class:`InputError` naming every directory that is absent or holds no complete run,
    and every file that cannot be read.
    """
    stop_on_errors(problem for root in roots for problem in _problems(root))
    found: dict[Path, Result] = {}
    for root in roots:
        # Simulated data has a manifest too; settings beside it are what makes it a run.
        files = [file for file in root.rglob("manifest.json") if _is_run(file.parent)]
        for file in sorted(files):
            name = _name(file.parent, root, several=len(roots) > 1)
            found.setdefault(file.parent.resolve(), _read(file.parent, name))
    stop_on_errors(problem for result in found.values() for problem in _lacking(result))
    whole = {path for path, result in found.items() if result.metrics and not result.parent}
    outer = [result for path, result in found.items() if not whole & set(path.parents)]
    outer.sort(key=lambda result: str(result.run.manifest.get("started", "")))
    return Gathered(
        results=[result for result in outer if result.metrics and not result.parent],
        parents=[result for result in outer if result.parent],
        unfinished=[result.name for result in outer if not (result.metrics or result.parent)],
    )


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").exists() or (path / "metrics.json").exists()


def _read(path: Path, name: str) -> Result:
    run = Run(path)
    run.manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    config = run.config if (path / "config.yaml").exists() else {}
    return Result(name=name, run=run, config=config, metrics=run.metrics if run.complete else {})


def _name(path: Path, root: Path, *, several: bool) -> str:
    inside = path.relative_to(root).parts
    return "/".join([root.resolve().name, *inside] if several or not inside else inside)


def _problems(root: Path) -> list[Problem]:
    """What stops `root` from being read: absent, empty, or with files that are not whole."""
    if not root.is_dir():
        return [Problem(where=str(root), what="is not a directory", mend="give a run directory")]
    parsers: dict[str, Callable[[str], Any]] = {
        "metrics.json": json.loads,
        "manifest.json": json.loads,
        "config.yaml": yaml.safe_load,
    }
    files = [(file, parse) for name, parse in parsers.items() for file in root.rglob(name)]
    broken = [problem for file, parse in files for problem in _unreadable(file, parse)]
    if broken:
        return broken
    if not find_runs(root):
        mend = "give the --out directory of a run that finished, such as one of `cedilla finetune`"
        return [Problem(where=str(root), what="holds no complete run", mend=mend)]
    return []


def _lacking(result: Result) -> list[Problem]:
    """A comparison without its arms cannot be shown; all else may be left out."""
    if result.verb != "compare" or not result.metrics or result.metrics.get("arms"):
        return []
    where = str(result.run.path / "metrics.json")
    return [Problem(where=where, what="has no arms to compare", mend="repeat that run")]


def _unreadable(file: Path, parse: Callable[[str], Any]) -> list[Problem]:
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        what = f"cannot be read ({str(error).splitlines()[0]})"
    else:
        if isinstance(content, dict):
            return []
        what = "does not hold names with values"
    return [Problem(where=str(file), what=what, mend="repeat that run")]
