"""Where the files of a task are: a named folder, ``CEDILLA_DATA``, the cache, their public source.

The content of every file is checked against the catalogue's hash before it is used.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from cedilla.errors import InputError, MissingData, Problem
from cedilla.files import cache_dir
from cedilla.progress import progress_bar
from cedilla.tasks.catalogue import DataFile, Task, find_task, tasks
from cedilla.version import __version__

if sys.platform != "win32":
    import fcntl

TIMEOUT = 20.0  # seconds without a byte
BACKOFF = (1.0, 2.0, 4.0)  # seconds before each further attempt
_CHUNK = 1 << 16
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class _InterruptedError(Exception):
    """A download broke off for a reason that may pass."""


class _UnavailableError(Exception):
    """A download that further attempts will not bring."""


def locate(task: str | Task, split: str, *, data_dir: str | Path | None = None) -> Path:
    """The path of a split's file, checked against the catalogue's hash, downloaded if need be.

    Looked for in `data_dir`, then in the folder that the environment variable ``CEDILLA_DATA``
    names, then in the cache; in a folder, ``gue/TASK/SPLIT.csv``, ``GUE/TASK/SPLIT.csv`` and
    ``TASK/SPLIT.csv`` serve, each also gzipped. With ``CEDILLA_OFFLINE=1`` nothing is downloaded.

    Raises :class:`InputError` where the file found is not the catalogue's, and
    :class:`MissingData`, which says where was looked and what to do, where there is none.
    """
    task = task if isinstance(task, Task) else find_task(task)
    file = task.file(split)
    found = find_local(file, data_dir=data_dir)
    if found:
        check(found[1], file)
        return found[1]
    try:
        return _download(file, cache_dir() / file.path)
    except _UnavailableError as reason:
        _missing(task, file, data_dir, str(reason))


def find_local(file: DataFile, *, data_dir: str | Path | None = None) -> tuple[str, Path] | None:
    """The place and the path of a file on this machine, unchecked; None if it is not here."""
    below_gue = file.path.removeprefix("gue/")
    for place, folder in _places(data_dir):
        for relative in dict.fromkeys((file.path, f"GUE/{below_gue}", below_gue)):
            for suffix in ("", ".gz"):
                path = folder / (relative + suffix)
                if path.is_file():
                    return place, path
    return None


def check(path: Path, file: DataFile) -> None:
    """Raise :class:`InputError` unless the unpacked content of `path` has the catalogue's hash."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError.one(path, f"cannot be read ({error})", _replace(file)) from error
    kind, expected = file.checksum
    found = _digest(content, kind)
    if found != expected:
        raise InputError.one(
            path,
            f"is not the {file.split} file of {file.task}: its {kind} is {found}, "
            f"expected {expected}",
            _replace(file),
        )


def _download(file: DataFile, target: Path) -> Path:
    """Download a file to `target`: resumed where it broke off, checked, whole or not at all.

    Raises :class:`InputError` where the source serves something else or `target` cannot be
    written; what arrived before an interruption stays in ``TARGET.part``.
    """
    if os.environ.get("CEDILLA_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        raise _UnavailableError("CEDILLA_OFFLINE is set")
    if file.url is None:
        raise _UnavailableError("it has no public address")
    if urlsplit(file.url).scheme not in ("http", "https", "file"):
        raise _UnavailableError(f"{file.url} is neither http, https nor file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target):
            if not target.exists():
                _retry(file, file.url, target)
    except OSError as error:
        raise InputError.one(
            target.parent,
            f"cannot be written ({error.strerror or error})",
            "free space there, or name another folder by CEDILLA_CACHE",
        ) from error
    return target


def data_get(task: str, *, data_dir: str | Path | None = None) -> None:
    """Download the files of a task to the cache, unless they are on this machine already.

    Example: ``cedilla data get prom_core_all``

    Parameters
    ----------
    task
        Name or alias of the task; ``cedilla data list`` prints them.
    data_dir
        A folder to look in first.
    """
    found = find_task(task)
    paths = {split: locate(found, split, data_dir=data_dir) for split in found.splits}
    for split, path in paths.items():
        print(f"{found.name} {split}\t{path}")


def data_list(*, data_dir: str | Path | None = None) -> None:
    """Print the tasks of the catalogue: their splits, rows, and where their files are.

    Example: ``cedilla data list``

    Parameters
    ----------
    data_dir
        A folder to look in first, before CEDILLA_DATA and the cache.
    """
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "organism", "rows", "bp", "metric", "found"):
        table.add_column(heading, justify="right" if heading in ("rows", "bp") else "left")
    for task in tasks():
        rows = "/".join(str(file.rows) for file in task.files)
        found = _where(task, data_dir)
        table.add_row(task.name, task.organism, rows, str(task.length), task.metric, found)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        "\nRows are those of train/dev/test. `cedilla data get TASK` fetches a task.", style="dim"
    )


def _where(task: Task, data_dir: str | Path | None) -> str:
    """Such as ``cache``, or ``CEDILLA_DATA, no train``."""
    found = {file.split: find_local(file, data_dir=data_dir) for file in task.files}
    places = dict.fromkeys(place_and_path[0] for place_and_path in found.values() if place_and_path)
    absent = [f"no {split}" for split, place_and_path in found.items() if not place_and_path]
    return ", ".join([*places, *absent]) if places else "not here"


def _places(data_dir: str | Path | None) -> list[tuple[str, Path]]:
    places = [("cache", cache_dir())]
    if named := os.environ.get("CEDILLA_DATA"):
        places.insert(0, ("CEDILLA_DATA", Path(named).expanduser()))
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        if not folder.is_dir():
            raise InputError.one(data_dir, "is not a folder", "check --data-dir")
        places.insert(0, ("data dir", folder))
    return places


def _missing(task: Task, file: DataFile, data_dir: str | Path | None, reason: str) -> NoReturn:
    looked = ", ".join(f"{place} {folder}" for place, folder in _places(data_dir))
    unset = "" if os.environ.get("CEDILLA_DATA") else "; CEDILLA_DATA is not set"
    kind, expected = file.checksum
    by_hand = f"{file.path} ({kind} {expected}) in a folder named by --data-dir or CEDILLA_DATA"
    if file.url:
        mend = (
            f"run `cedilla data get {task.name}` where there is internet and share the folder by "
            f"CEDILLA_CACHE, or put {file.url} as {by_hand}"
        )
    else:
        mend = f"put {by_hand}; it is {task.source.origin}"
    what = f"is missing: not in {looked}{unset}; not downloaded: {reason}"
    raise MissingData([Problem(where=f"{task.name} {file.split}", what=what, mend=mend)])


def _replace(file: DataFile) -> str:
    if file.url is None:
        return "move it away; a table of your own is passed by its path"
    return f"move it away to have it downloaded from {file.url}"


def _digest(content: bytes, kind: str) -> str:
    if kind == "sha256":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _sole_writer(target: Path) -> Iterator[None]:
    """Wait until no other process, such as another job of an array, downloads `target`."""
    with open(target.with_name(f".{target.name}.lock"), "ab") as lock:
        if sys.platform != "win32":
            # Some network file systems know no locks; there the hash is the only guard.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _retry(file: DataFile, url: str, target: Path) -> None:
    # Not `whole_file`: a part must outlive an interruption to be taken up again.
    part = target.with_name(target.name + ".part")
    for wait in (*BACKOFF, None):
        try:
            _attempt(file, url, part)
        except _InterruptedError as reason:
            if wait is None:
                raise _UnavailableError(f"{url}: {reason}") from None
            time.sleep(wait)
        else:
            os.replace(part, target)
            return


def _attempt(file: DataFile, url: str, part: Path) -> None:
    """Bring `part` to its full length and check it; a wrong part is thrown away."""
    resumed = part.exists() and part.stat().st_size > 0
    if not resumed or part.stat().st_size != file.bytes:
        _transfer(file, url, part)
    kind, expected = file.checksum
    found = _digest(part.read_bytes(), kind)
    if found == expected:
        return
    part.unlink()
    if resumed:
        raise _InterruptedError("the resumed download had a wrong hash, so it starts anew")
    raise InputError.one(
        url,
        f"serves something else than {file.task} {file.split}: its {kind} is {found}, "
        f"expected {expected}",
        "check the connection, as a proxy or a login page may stand between, or get the file "
        "elsewhere and name its folder by --data-dir",
    )


def _transfer(file: DataFile, url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    with _open(url, have) as response:
        if response is None:  # nothing follows what is here; the hash will tell
            return
        start = have if _continues(response, have) else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if total is not None and file.bytes and total != file.bytes:
            raise InputError.one(
                url,
                f"announces {total:,} bytes, where the catalogue has {file.bytes:,}",
                "get the file elsewhere and name its folder by --data-dir",
            )
        with open(part, "ab" if start else "wb") as out:
            _copy(response, out, f"{file.task} {file.split}", start, total)
    received = part.stat().st_size
    if total is not None and received < total:
        raise _InterruptedError(f"broke off at {received:,} of {total:,} bytes")


@contextmanager
def _open(url: str, have: int) -> Iterator[http.client.HTTPResponse | None]:
    """The response from byte `have` on, or None where the server has no more than that."""
    headers = {"User-Agent": f"cedilla/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        ) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            yield None
            return
        reason = f"HTTP {error.code} {error.reason}"
        if error.code in _TRY_AGAIN:
            raise _InterruptedError(reason) from None
        raise _UnavailableError(f"{url}: {reason}") from None
    except urllib.error.URLError as error:
        # No name, no route, no valid certificate: what will not pass in seconds.
        if isinstance(error.reason, ConnectionError):
            raise _InterruptedError(str(error.reason)) from None
        raise _UnavailableError(f"{url}: {error.reason}") from None
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _InterruptedError(f"{type(error).__name__}: {error}") from None


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    # A server that ignores Range answers 200 with the whole file.
    sent = response.headers.get("Content-Range", "")
    return response.status == 206 and sent.startswith(f"bytes {have}-")


def _copy(
    response: http.client.HTTPResponse, out: BinaryIO, name: str, start: int, total: int | None
) -> None:
    with progress_bar(transient=True) as bar:
        row = bar.add_task(
            f"{name} (kB)", total=total and -(-total // 1000), completed=start // 1000
        )
        done = start
        while chunk := response.read(_CHUNK):
            out.write(chunk)
            done += len(chunk)
            bar.update(row, completed=done // 1000)
