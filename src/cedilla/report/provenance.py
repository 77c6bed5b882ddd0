"""How the runs were made, so that they can be made again: settings, versions, data, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from cedilla.report.page import Block, Bullets, Cell, Details, Group, Paragraph, Section, Table
from cedilla.report.results import Result
from cedilla.report.wording import MISSING, count, decimal, duration, listed


def provenance_sections(results: Sequence[Result], parents: Sequence[Result]) -> list[Section]:
    """Limits of the evidence; runs, data, settings and versions."""
    tables: list[Block] = [_runs(results), *_data(results)]
    settings = [
        Details(
            summary=f"Settings of {r.name}", text=yaml.safe_dump(dict(r.config), sort_keys=False)
        )
        for r in [*parents, *results]
        if r.config
    ]
    versions = [Paragraph(text=text) for text in _versions(results)]
    return [
        Section(title="Limits of the evidence", blocks=[Bullets(items=_limits(results))]),
        Section(title="How it was made", blocks=[*tables, *versions, *settings]),
    ]


def other_sections(results: Sequence[Result]) -> list[Section]:
    """The numbers of runs of verbs that have no section of their own."""
    groups = [
        Group(name=f"{r.name} · {r.verb}", rows=[[Cell(k), Cell(v)] for k, v in _flat(r.metrics)])
        for r in results
    ]
    table = Table(caption="Results as recorded", head=["Name", "Value"], groups=groups)
    return [Section(title="Other runs", blocks=[table])] if groups else []


def _limits(results: Sequence[Result]) -> list[str]:
    limits = [
        limit for r in results for limit in (r.metrics.get("verdict") or {}).get("limits") or ()
    ]
    finetuned = [result for result in results if result.verb == "finetune"]
    synthetic = [result.name for result in results if result.synthetic]
    if synthetic:
        limits.append(f"Simulated, and so no evidence about biology: {listed(synthetic)}.")
    if finetuned:
        limits.append(
            "Intervals of fine-tuned runs are over test rows: they hold for the one seed that was "
            "run, and say nothing about the spread over seeds."
        )
    if any(result.metrics.get("task") for result in finetuned):
        limits.append(
            "Published values are printed without intervals, and a public benchmark has known "
            "duplicates between its splits: small gaps to them mean nothing."
        )
    limits.append("Only the test rows of the data files named below were tested, nothing beyond.")
    return list(dict.fromkeys(limits))


def _runs(results: Sequence[Result]) -> Table:
    rows = []
    for result in results:
        manifest = result.run.manifest
        seeds = _seeds(result)
        row = [result.name, result.verb, seeds, str(manifest.get("device", MISSING))]
        row += [_moment(str(manifest.get("started", ""))), duration(manifest.get("seconds"))]
        rows.append([Cell(text) for text in row])
    return Table(
        caption="Runs",
        head=["Run", "Verb", "Seeds", "Device", "Started", "Time"],
        groups=[Group(rows=rows)],
        words=frozenset({0, 1, 3, 4}),
    )


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z") if text else MISSING


def _seeds(result: Result) -> str:
    for source in (result.run.manifest, result.config):
        for key in ("seeds", "seed"):
            if source.get(key) is not None:
                value = source[key]
                return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return MISSING


def _data(results: Sequence[Result]) -> list[Table]:
    files: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    for result in results:
        for entry in result.run.manifest.get("data") or ():
            key = (str(entry.get("file")), str(entry.get("sha256")))
            files.setdefault(key, (entry, []))[1].append(f"{result.name} ({entry.get('role')})")
    rows = [
        [Cell(name), Cell(count(entry.get("rows"))), Cell(", ".join(users)), Cell(sha256)]
        for (name, sha256), (entry, users) in files.items()
    ]
    table = Table(
        caption="Data files, named by the SHA-256 of their content",
        head=["File", "Rows", "Read by", "SHA-256"],
        groups=[Group(rows=rows)],
        words=frozenset({0, 2, 3}),
    )
    return [table] if rows else []


def _versions(results: Sequence[Result]) -> list[str]:
    """One sentence for each environment that the runs were made in."""
    users: dict[str, list[str]] = {}
    for result in results:
        users.setdefault(_environment(result.run.manifest), []).append(result.name)
    if len(users) == 1:
        return [f"Made with {next(iter(users))}."]
    return [f"Made with {text}: {listed(names)}." for text, names in users.items()]


def _environment(manifest: Mapping[str, Any]) -> str:
    libraries = [f"{name} {version}" for name, version in (manifest.get("libraries") or {}).items()]
    named = [
        f"Cedilla {manifest.get('version', MISSING)}",
        f"Python {manifest.get('python', MISSING)}",
    ]
    return listed([*named, *libraries]) + f" on {manifest.get('platform', 'an unnamed platform')}"


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Numbers and words of nested results, under dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif isinstance(value, float):
            rows.append((name, decimal(value)))
        else:
            rows.append((name, str(value)))
    return rows
