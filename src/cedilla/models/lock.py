"""The record beside fetched files: where they came from, at which revision, and their hashes.

A file whose length and time of change are those of the record is taken for unchanged, as git does
with its index; any other is hashed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.files import sha256, write_json

LOCK = "cedilla.lock.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedFile:
    """A file's length, SHA-256, and time of change in nanoseconds."""

    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The files of a directory by name, and the repository and commit that they are from."""

    repository: str
    revision: str
    files: dict[str, LockedFile]


def write_lock(
    directory: Path, *, repository: str, revision: str, hashes: Mapping[str, str]
) -> None:
    """Record files of a directory: their SHA-256 by name, which is computed where it is empty."""
    files = {}
    for name, digest in sorted(hashes.items()):
        state = (directory / name).stat()
        files[name] = LockedFile(
            bytes=state.st_size,
            sha256=digest or sha256(directory / name),
            mtime_ns=state.st_mtime_ns,
        )
    write_json(
        directory / LOCK, asdict(Lock(repository=repository, revision=revision, files=files))
    )


def read_lock(directory: Path) -> Lock | None:
    """The record in a directory, or None; raises :class:`InputError` where it is damaged."""
    path = directory / LOCK
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: LockedFile(**entry) for name, entry in values.pop("files").items()}
        return Lock(files=files, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"damaged: {type(error).__name__}: {error}"
        mend = "remove it to take the files as they are, or fetch them again"
        raise InputError.one(path, what, mend) from None


def refuse_altered(directory: Path) -> None:
    """Raise :class:`InputError` with the files that are other than a directory's record says."""
    lock = read_lock(directory)
    stop_on_errors(altered(directory, lock) if lock else [])


def altered(directory: Path, lock: Lock, *, thorough: bool = False) -> list[Problem]:
    """The files that are gone or other than recorded; `thorough` hashes the unchanged ones too."""
    found = []
    for name, locked in lock.files.items():
        what = _difference(directory / name, locked, thorough)
        if what:
            mend = f"fetch it again, or remove {LOCK} if you changed it on purpose"
            found.append(Problem(where=str(directory / name), what=what, mend=mend))
    return found


def _difference(path: Path, locked: LockedFile, thorough: bool) -> str:
    if not path.is_file():
        return "not found"
    state = path.stat()
    if state.st_size != locked.bytes:
        return f"has {state.st_size:,} bytes, {locked.bytes:,} when it was fetched"
    if state.st_mtime_ns == locked.mtime_ns and not thorough:
        return ""
    found = sha256(path)
    if found == locked.sha256:
        return ""
    return f"altered: its sha256 is {found}, {locked.sha256} when it was fetched"
