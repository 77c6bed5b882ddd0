"""A run is a directory: config, manifest, metrics, predictions, checkpoints, plots, report.

It can be moved, read without Cedilla (YAML, JSON, Parquet), and resumed.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cedilla.errors import InputError
from cedilla.files import sha256, whole_file, write_json, write_text
from cedilla.version import __version__

LIBRARIES = ("torch", "numpy", "pandas", "scikit-learn", "scipy", "peft", "pysam")


class Run:
    """The directory of one run of one verb.

    ============================  ==========================================================
    ``config.yaml``               every argument of the verb, defaults included
    ``manifest.json``             verb, versions, data hashes, seeds, device, times, counts
    ``metrics.jsonl``             one JSON object per event, in order of time
    ``metrics.json``              the results; its presence says that the run is complete
    ``predictions/NAME.parquet``  id, label, probability, group, seed, fold, …
    ``checkpoints/{best,last}/``  weights
    ``plots/``, ``report.html``   written by :mod:`cedilla.report`
    ============================  ==========================================================
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = {}
        self._data_before: list[dict[str, Any]] = []
        self._started = time.monotonic()

    @classmethod
    def start(
        cls, path: str | Path, *, verb: str, config: Mapping[str, Any], resume: bool = False
    ) -> Run:
        """Create the directory, or take up an interrupted run of the same configuration.

        Raises :class:`InputError` when `path` holds a run already and `resume` is false, or
        when the run there has another configuration.
        """
        run = cls(path)
        # A run may have been moved with its data: files count by their content, in `note_data`.
        places = {"out"} | {key for key, value in config.items() if isinstance(value, Path)}
        config = {k: _plain(v) for k, v in config.items() if k not in ("resume", "dry_run")}
        if run.path.is_file():
            raise InputError.one(path, "is a file, not a directory", "choose another --out")
        if (run.path / "config.yaml").exists():
            if not resume:
                raise InputError.one(
                    path, "holds a run already", "pass --resume, or choose another --out"
                )
            before = run.config
            changed = sorted(
                k
                for k in (before.keys() | config.keys()) - places
                if before.get(k) != config.get(k)
            )
            if changed:
                raise InputError.one(
                    path,
                    f"holds a run with other settings ({', '.join(changed)})",
                    "choose another --out",
                )
            if run.complete:
                run.manifest = run._read_manifest()
                return run
            run._data_before = run._read_manifest().get("data", [])
            run._clear_up()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"cannot be made: {error.strerror}"
            raise InputError.one(path, why, "choose another --out") from None
        run.manifest = {
            "verb": verb,
            "version": __version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "libraries": {name: installed_version(name) for name in LIBRARIES},
            "device": "cpu",
            "data": [],
        }
        write_text(run.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        if not run._data_before:  # else the first note replaces what a resumed run began with
            run._write_manifest()
        return run

    @property
    def complete(self) -> bool:
        """Whether the verb ran to its end here."""
        return (self.path / "metrics.json").exists()

    @property
    def config(self) -> dict[str, Any]:
        """The effective configuration."""
        values = yaml.safe_load((self.path / "config.yaml").read_text())
        return dict(values) if isinstance(values, dict) else {}

    @property
    def metrics(self) -> dict[str, Any]:
        """The results of a complete run."""
        return dict(json.loads((self.path / "metrics.json").read_text()))

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self.manifest.update({key: _plain(value) for key, value in facts.items()})
        self._write_manifest()

    def note_data(self, path: str | Path, *, role: str, rows: int) -> None:
        """Add a data file to the manifest, with the hash of its content.

        Raises :class:`InputError` when a resumed run had another content in that role.
        """
        content = sha256(path)
        same_role = [entry for entry in self._data_before if entry["role"] == role]
        if same_role and content not in [entry["sha256"] for entry in same_role]:
            raise InputError.one(
                path,
                f"is not the {role} file that the run in {self.path} began with",
                "restore it, or choose another --out",
            )
        if _is_simulated(Path(path)):
            self.note(synthetic=True)
        entry = {"role": role, "file": Path(path).name, "sha256": content, "rows": rows}
        self.note(data=[*self.manifest["data"], entry])

    def note_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Add files of which number, order and further facts belong to the run, all at once.

        Each of `inputs` has a `path`, a `role`, and facts such as ``rows=2``. Raises
        :class:`InputError` when a resumed run had others: another file, fact or order.
        """
        entries = [
            {
                "role": one["role"],
                "file": Path(one["path"]).name,
                "sha256": sha256(one["path"]),
                **{key: _plain(one[key]) for key in one if key not in ("role", "path")},
            }
            for one in inputs
        ]
        # A file may have been renamed, not changed.
        now, before = (
            [{k: v for k, v in entry.items() if k != "file"} for entry in some]
            for some in (entries, self._data_before)
        )
        if before and now != before:
            differs = next(
                (i for i, (a, b) in enumerate(zip(now, before, strict=False)) if a != b),
                min(len(now), len(before)),
            )
            where = inputs[differs]["path"] if differs < len(inputs) else self.path
            raise InputError.one(
                where,
                f"the run in {self.path} began with other files or weights",
                "restore them, or choose another --out",
            )
        self.note(data=entries)

    def log(self, **event: Any) -> None:
        """Append an event, such as an epoch's metrics, to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({k: _plain(v) for k, v in event.items()}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The events logged so far; a line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Drop the logged events that `keep` refuses; returns the others."""
        events = [event for event in self.events() if keep(event)]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in events))
        return events

    def write_predictions(self, name: str, predictions: pd.DataFrame) -> None:
        """Write ``predictions/NAME.parquet``."""
        with whole_file(self.path / "predictions" / f"{name}.parquet") as draft:
            predictions.to_parquet(draft, index=False)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the results, which marks the run as complete."""
        self.note(seconds=round(time.monotonic() - self._started, 1))
        write_json(self.path / "metrics.json", _plain(metrics))

    def _clear_up(self) -> None:
        """Remove what a kill left: drafts of files, and the stump of a logged line."""
        for draft in self.path.rglob(".*.part*"):
            draft.unlink()
        if (self.path / "metrics.jsonl").exists():
            self.rewind(lambda _: True)

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def _write_manifest(self) -> None:
        write_json(self.path / "manifest.json", self.manifest)


def find_runs(path: str | Path) -> list[Run]:
    """The complete runs at and below `path`, in order of their start."""
    runs = []
    for metrics in sorted(Path(path).rglob("metrics.json")):
        run = Run(metrics.parent)
        run.manifest = run._read_manifest()
        if run.manifest:
            runs.append(run)
    return sorted(runs, key=lambda run: (run.manifest["started"], str(run.path)))


def _is_simulated(path: Path) -> bool:
    """Whether a file lies in a directory that `cedilla methylation simulate` wrote."""
    return Run(path.parent)._read_manifest().get("verb") == "methylation simulate"


def _plain(value: Any) -> Any:
    """`value` in the types that YAML and JSON share; NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
