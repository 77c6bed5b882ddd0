"""Where the files of a published model can come from: a directory, or Hugging Face or a mirror."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cedilla.errors import InputError, MissingData, Problem, stop_on_errors
from cedilla.files import sha256
from cedilla.models.cards import FileHash, ModelCard
from cedilla.models.lock import read_lock
from cedilla.models.shards import KINDS, main_file, weight_files
from cedilla.progress import console
from cedilla.version import __version__

CONFIG = "config.json"
# Cedilla does not read them; with them the directory serves transformers too.
TOKENIZER = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_LOCAL_FAULTS = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A file that a source has: its length and SHA-256, which is empty for unhashed small files."""

    name: str
    bytes: int
    sha256: str


class Source(Protocol):
    """What gives files: its commit, what it offers, and how to bring an offer to a path."""

    revision: str
    offers: list[Offer]

    def bring(self, offer: Offer, part: Path) -> None:
        """Bring a file to `part`, going on where `part` ends."""

    def sole_writer(self, out: Path) -> AbstractContextManager[Any]:
        """Keep other processes from writing to `out`."""


class Folder:
    """A directory with a model's files, such as a USB disk's or another machine's copy.

    Raises :class:`InputError` for files that are not the published ones.
    """

    def __init__(self, found: ModelCard, path: Path) -> None:
        self.path = path
        lock = read_lock(path)
        self.revision = lock.revision if lock and lock.repository == found.repository else ""
        if not (path / CONFIG).is_file():
            raise InputError.one(path / CONFIG, "not found", "name a directory with a model in it")
        main = main_file(path)
        files = [path / CONFIG, main, *(file for file in weight_files(main) if file != main)]
        files += [path / name for name in TOKENIZER if (path / name).is_file()]
        with console.status(f"checking {path}"):
            self.offers = [
                Offer(name=file.name, bytes=file.stat().st_size, sha256=sha256(file))
                for file in files
            ]
        stop_on_errors(
            Problem(
                where=str(path / offer.name),
                what=f"is not {found.name}'s: its sha256 is {offer.sha256}, {known.sha256} as "
                "published",
                mend="copy it again; a model of your own is named by its path",
            )
            for offer in self.offers
            if (known := found.files.get(offer.name)) and known.sha256 != offer.sha256
        )
        if not self.revision and main.name in found.files:
            self.revision = found.revision

    def __str__(self) -> str:
        return str(self.path)

    def bring(self, offer: Offer, part: Path) -> None:
        """Copy a file."""
        shutil.copyfile(self.path / offer.name, part)

    def sole_writer(self, out: Path) -> AbstractContextManager[Any]:
        """Nothing: copies need no turns."""
        return nullcontext()


class Mirror:
    """A repository of Hugging Face, there or at another address that speaks the same protocol.

    The client library lists and downloads. Its own cache is not used: since version 2 it starts an
    interrupted file anew (https://github.com/huggingface/huggingface_hub/pull/4228).

    Raises :class:`MissingData` where the repository cannot be reached.
    """

    def __init__(self, found: ModelCard, endpoint: str | None, revision: str) -> None:
        from huggingface_hub import HfApi

        self.endpoint = endpoint.rstrip("/") if endpoint else None
        self.repository = found.repository
        self._name = found.name
        api = HfApi(self.endpoint, token=False, library_name="cedilla", library_version=__version__)
        try:
            info: Any = api.model_info(found.repository, revision=revision, files_metadata=True)
        # The client raises dozens of types; each means that the files cannot be had.
        except Exception as error:
            raise self._missing(error) from error
        self.revision: str = info.sha
        known = found.files if self.revision == found.revision else {}
        listed = {file.rfilename: _offer(file, known) for file in info.siblings}
        self.offers = [listed[name] for name in self._chosen(listed)]
        stop_on_errors(
            Problem(
                where=f"{self} {file.rfilename}",
                what=f"is offered with sha256 {file.lfs.sha256}; that commit has {hash_.sha256}",
                mend="take the files from elsewhere, by --from",
            )
            for file in info.siblings
            if file.lfs and (hash_ := known.get(file.rfilename)) and hash_.sha256 != file.lfs.sha256
        )

    def __str__(self) -> str:
        return f"{self.endpoint or 'https://huggingface.co'}/{self.repository}"

    def bring(self, offer: Offer, part: Path) -> None:
        """Download a file, going on where `part` ends."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(
            self.repository, offer.name, revision=self.revision, endpoint=self.endpoint
        )
        headers = build_hf_headers(token=False, library_name="cedilla", library_version=__version__)
        try:
            with open(part, "ab") as file:
                http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    headers=headers,
                    expected_size=offer.bytes,
                    displayed_filename=offer.name,
                )
        except Exception as error:
            if getattr(error, "errno", None) in _LOCAL_FAULTS:
                raise
            raise self._missing(error) from error

    def sole_writer(self, out: Path) -> AbstractContextManager[Any]:
        """Wait until no other process, such as another job of an array, downloads to `out`."""
        from huggingface_hub.utils import WeakFileLock

        lock: AbstractContextManager[Any] = WeakFileLock(out / ".lock")
        return lock

    def _chosen(self, listed: dict[str, Offer]) -> list[str]:
        """The files that make a model: one kind of weights, safetensors if they are there."""
        main = next((kind for kind in KINDS if kind in listed), None)
        if main is None or CONFIG not in listed:
            what = f"has no {CONFIG} and weights at {self.revision}"
            raise InputError.one(self, what, "name another --revision")
        names = [main]
        if main.endswith(".index.json"):
            stem, suffix = main.removesuffix(".index.json").rsplit(".", 1)
            shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            names += [name for name in listed if shard.fullmatch(name)]
        return [CONFIG, *names, *(name for name in TOKENIZER if name in listed)]

    def _missing(self, error: Exception) -> MissingData:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        mend = (
            "name another --revision, or "
            if type(error).__name__ == "RevisionNotFoundError"
            else ""
        ) + (
            f"put {self.repository}'s config.json and weights in $CEDILLA_MODELS/{self._name}, or "
            "run the same command again where there is a connection"
        )
        return MissingData.one(f"model {self._name!r}", f"weights cannot be had: {reason}", mend)


def _offer(file: Any, known: Mapping[str, FileHash]) -> Offer:
    """A file as the hub lists it; it knows the hashes of large files alone."""
    name: str = file.rfilename
    if name in known:
        return Offer(name=name, bytes=known[name].bytes, sha256=known[name].sha256)
    return Offer(name=name, bytes=file.size or 0, sha256=file.lfs.sha256 if file.lfs else "")
