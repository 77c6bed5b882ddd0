"""Finished parts of a long computation on disk, from which another process can go on."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cedilla.errors import Problem, stop_on_errors
from cedilla.files import whole_file, write_json


class Parts:
    """The folder ``.NAME.parts`` beside a result: its facts, and the parts finished so far.

    The facts are all that the result depends on, as JSON has it: what differs in ``sha256`` (of
    input and model) or in ``settings`` makes it another result, what differs in ``computed`` (path,
    versions, threads) may change its last digits; other entries are for people.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self._facts = self.folder / "facts.json"

    def exists(self) -> bool:
        """Whether a computation was begun here and not finished."""
        return self._facts.exists()

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the computation that was begun here."""
        return dict(json.loads(self._facts.read_text(encoding="utf-8")))

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Start anew."""
        self.discard()
        write_json(self._facts, facts)

    def sweep(self) -> int:
        """Remove the drafts that a killed process left, and parts from the first damaged one on.

        Returns how many parts were removed; they are to be computed again.
        """
        for draft in self.folder.glob(".*.part*"):
            draft.unlink()
        count = self.count()
        sound = next((k for k in range(count) if not self._is_sound(k)), count)
        for stray in self.folder.glob("[0-9]*.arrow"):
            if int(stray.stem) >= sound:
                stray.unlink()
        return count - sound

    def _is_sound(self, number: int) -> bool:
        try:
            with pa.OSFile(str(self._path(number))) as file:
                pa.ipc.open_file(file)
        except (OSError, pa.ArrowInvalid):
            return False
        return True

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def count(self) -> int:
        """How many parts are finished."""
        return len(list(self.folder.glob("[0-9]*.arrow")))

    def size(self) -> int:
        """Bytes of the finished parts."""
        return sum(path.stat().st_size for path in self.folder.glob("[0-9]*.arrow"))

    def save(self, number: int, table: pa.Table, carry: Mapping[str, np.ndarray]) -> None:
        """Write part `number`, and with it what is needed to go on after it."""
        state = io.BytesIO()
        np.savez(state, allow_pickle=False, **carry)
        schema = table.schema.with_metadata({b"carry": state.getvalue()})
        with whole_file(self._path(number)) as draft, pa.ipc.new_file(draft, schema) as writer:
            writer.write_table(table.cast(schema))

    def carry(self, number: int) -> dict[str, np.ndarray]:
        """What was needed to go on after part `number`."""
        with pa.OSFile(str(self._path(number))) as file:
            state = pa.ipc.open_file(file).schema.metadata[b"carry"]
        with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
            return dict(arrays)

    def tables(self) -> Iterator[pa.Table]:
        """The parts in order."""
        for number in range(self.count()):
            with pa.OSFile(str(self._path(number))) as file:
                yield pa.ipc.open_file(file).read_all().replace_schema_metadata(None)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.arrow"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed between two mappings, such as ``layers: [5] → [2]``."""
    return [
        f"{key}: {_short(before.get(key))} → {_short(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def refuse_changes(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` where `before` are the facts of another result than `now`."""
    mend = "repeat what it was begun with, or choose another --out"
    changes = [c for key in ("sha256", "settings") for c in differences(before[key], now[key])]
    stop_on_errors(
        Problem(where=str(where), what=f"was begun with another {change}", mend=mend)
        for change in changes
    )


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
