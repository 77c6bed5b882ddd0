"""Published weights: where they are on this machine, and how they get there.

A model's files are looked for in ``$CEDILLA_MODELS/NAME``, then in Cedilla's cache, then in that of
Hugging Face. They are downloaded at a fixed commit, and never with ``CEDILLA_OFFLINE=1``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import suppress
from pathlib import Path

from cedilla.errors import InputError, MissingData, Problem, stop_on_errors
from cedilla.files import cache_dir, sha256
from cedilla.models.cards import ModelCard, card
from cedilla.models.families import Config
from cedilla.models.lock import altered, read_lock, write_lock
from cedilla.models.shards import main_file, weight_files
from cedilla.models.sources import CONFIG, Folder, Mirror, Offer, Source
from cedilla.models.weights import read_config, read_headers
from cedilla.progress import console

# What decides the shapes of the weights and how they are used.
SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "position_embedding_type",
)  # fmt: skip


def models_get(
    name: str,
    *,
    to: Path | None = None,
    from_: str | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> Path:
    """Fetch the files of a published model, and check them.

    They are downloaded with huggingface_hub (`pip install cedilla[hub]`) at a fixed commit: the one
    that Cedilla knows, or else the newest, which is then written to cedilla.lock.json with the
    hashes of all files. A download that broke off is taken up where it ended; files that are there
    and whole are kept; altered ones are fetched anew. With CEDILLA_OFFLINE=1 nothing is downloaded.

    Parameters
    ----------
    name
        A name of `cedilla models`.
    to
        The directory for the files; by default $CEDILLA_MODELS/NAME, or NAME in the cache, where
        Cedilla finds them by name.
    from_
        A directory with the files, or the address of a mirror of Hugging Face such as
        http://mirror.example:8080; by default https://huggingface.co, or $HF_ENDPOINT.
    revision
        A commit, branch or tag instead of the known commit.
    dry_run
        Say what would be fetched, and stop.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    InputError
        An unknown name, or files that are not those of the model.
    MissingData
        The files cannot be had.

    Examples
    --------
    cedilla models get nucleotide-transformer-v2-50m
    cedilla models get nucleotide-transformer-500m-1000g --to weights/500m --from /mnt/usb/500m
    """
    found = card(name)
    if not found.repository:
        mend = "no files need to be fetched for it"
        raise InputError.one(f"model {found.name!r}", "is part of Cedilla", mend)
    out = Path(to) if to is not None else home() / found.name
    if out.exists() and not out.is_dir():
        raise InputError.one(out, "is not a directory", "choose another --to")
    if from_ is None and _is_complete(found, out, revision):
        console.print(f"{found.name} is here already, whole and unaltered", highlight=False)
    else:
        source = source_of(found, from_, _wanted(found, out, revision))
        if dry_run:
            print(plan(found, source, out))
            return out
        fetch(found, source, out)
    print(out)
    return out


def directory_of(found: ModelCard) -> Path:
    """The directory with a published model's files, fetched if they are nowhere on this machine.

    Raises :class:`InputError` where a file is not the published one, and :class:`MissingData`
    where the files cannot be had.
    """
    places = at_hand(found)
    if not places:
        out = home() / found.name
        fetch(found, source_of(found, None, _wanted(found, out, None)), out)
        return out
    directory = next(iter(places.values()))
    if read_lock(directory) is None:
        stop_on_errors(_unlike_the_published(found, directory))
    return directory


def home() -> Path:
    """Where models are put: ``CEDILLA_MODELS``, or ``models`` in the cache."""
    named = os.environ.get("CEDILLA_MODELS")
    return Path(named).expanduser() if named else cache_dir() / "models"


def at_hand(found: ModelCard) -> dict[str, Path]:
    """The directories on this machine that hold a model's files, by the name of the place."""
    places = {"CEDILLA_MODELS": home(), "cache": cache_dir() / "models"}
    if not os.environ.get("CEDILLA_MODELS"):
        del places["CEDILLA_MODELS"]
    directories = {place: root / found.name for place, root in places.items()}
    if cached := _hugging_face_cache(found):
        directories["Hugging Face's cache"] = cached
    return {place: path for place, path in directories.items() if (path / CONFIG).exists()}


def source_of(found: ModelCard, named: str | None, revision: str) -> Source:
    """Where a model's files are to come from: a directory, or Hugging Face or a mirror of it."""
    if named is not None and "://" not in named:
        if not Path(named).is_dir():
            mend = "name a directory, or an address that begins with http:// or https://"
            raise InputError.one(named, "is not a directory", mend)
        return Folder(found, Path(named))
    reason, mend = "", found_by_hand(found)
    if os.environ.get("CEDILLA_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        reason, mend = "CEDILLA_OFFLINE is set", f"unset it, or {mend}"
    elif importlib.util.find_spec("huggingface_hub") is None:
        reason = "huggingface_hub is not installed"
    if reason:
        what = f"weights are not on this machine, and {reason}"
        raise MissingData.one(f"model {found.name!r}", what, mend)
    return Mirror(found, named, revision or "main")


def found_by_hand(found: ModelCard) -> str:
    """What a user can do where a model's files cannot be downloaded."""
    return (
        f"put {found.repository}'s config.json and weights in $CEDILLA_MODELS/{found.name}, "
        f"or install cedilla[hub] and connect"
    )


def fetch(found: ModelCard, source: Source, out: Path) -> None:
    """Bring a model's files to a directory, check them, and record them there."""
    out.mkdir(parents=True, exist_ok=True)
    with source.sole_writer(out):
        if isinstance(source, Mirror) and _is_complete(found, out, source.revision):
            return  # another process was quicker
        new = [offer for offer in source.offers if not _is_whole(out / offer.name, offer)]
        _refuse_full_disk(out, new)
        if new:
            # Until all files are there, the directory is no model.
            (out / CONFIG).unlink(missing_ok=True)
        for offer in sorted(new, key=lambda offer: offer.name == CONFIG):
            _bring(source, offer, out)
        config = read_config(out / CONFIG)
        stop_on_errors(_other_shape(found, config, out / CONFIG))
        read_headers(out, config)
        hashes = {offer.name: offer.sha256 for offer in source.offers}
        write_lock(out, repository=found.repository, revision=source.revision, hashes=hashes)


def plan(found: ModelCard, source: Source, out: Path) -> str:
    """What `fetch` would do, as text."""
    lines = [f"{found.repository} at {source.revision or 'an unknown commit'} → {out}"]
    new = 0
    for offer in source.offers:
        here = _is_whole(out / offer.name, offer)
        new += 0 if here else offer.bytes
        lines.append(f"  {offer.bytes:>14,}  {offer.name}{'  (here)' if here else ''}")
    return "\n".join([*lines, f"to be fetched: {new:,} bytes; licence: {found.licence}"])


def _bring(source: Source, offer: Offer, out: Path) -> None:
    # Not `whole_file`: a part must outlive an interruption to be taken up again, and must not be
    # taken for that of another revision.
    part = out / f".{offer.name}.{offer.sha256[:16] or 'new'}.part"
    if not offer.sha256:
        part.unlink(missing_ok=True)
    resumed = part.exists() and part.stat().st_size > 0
    source.bring(offer, part)
    with console.status(f"checking {offer.name}"):
        found = sha256(part) if offer.sha256 else ""
    if found == offer.sha256:
        os.replace(part, out / offer.name)
        return
    part.unlink()
    if resumed:  # the part was spoilt
        _bring(source, offer, out)
        return
    raise InputError.one(
        f"{source} {offer.name}",
        f"is another file: its sha256 is {found}, expected {offer.sha256}",
        "check the connection or the mirror, as what arrived is not what was published",
    )


def _is_whole(path: Path, offer: Offer) -> bool:
    """Whether a file is there as it is offered; small files without a hash are brought anew."""
    if not offer.sha256 or not path.is_file() or path.stat().st_size != offer.bytes:
        return False
    with console.status(f"checking {path.name}"):
        return sha256(path) == offer.sha256


def _refuse_full_disk(out: Path, new: list[Offer]) -> None:
    parts = sum(part.stat().st_size for part in out.glob(".*.part"))
    need, free = sum(offer.bytes for offer in new) - parts, shutil.disk_usage(out).free
    if need > free:
        what = f"has {free / 1e9:.1f} GB free; the files take {need / 1e9:.1f} GB"
        raise InputError.one(out, what, "free space there, or name another directory by --to")


def _wanted(found: ModelCard, out: Path, revision: str | None) -> str:
    """The commit to fetch: as asked for, as known, or as recorded by an earlier download."""
    if revision or found.revision:
        return revision or found.revision
    lock = read_lock(out)
    return lock.revision if lock else ""


def _is_complete(found: ModelCard, out: Path, revision: str | None) -> bool:
    lock = read_lock(out)
    if lock is None or lock.repository != found.repository:
        return False
    return _wanted(found, out, revision) == lock.revision and not altered(out, lock, thorough=True)


def _other_shape(found: ModelCard, config: Config, path: Path) -> list[Problem]:
    pairs = {key: (getattr(config, key, "absent"), getattr(found.config, key)) for key in SHAPE}
    return [
        Problem(
            where=str(path),
            what=f"{key} is {here}; {found.name} has {published}",
            mend="these are the files of another model",
        )
        for key, (here, published) in pairs.items()
        if here != published
    ]


def _unlike_the_published(found: ModelCard, directory: Path) -> list[Problem]:
    """Files of a published one's name and length, but with other bytes: they were altered."""
    problems = []
    for name, known in found.files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != known.bytes:
            continue
        if (digest := sha256(path)) != known.sha256:
            what = f"altered: its sha256 is {digest}, {known.sha256} as published"
            mend = f"`cedilla models get {found.name}` fetches it; a model of your own is named by "
            problems.append(Problem(where=str(path), what=what, mend=mend + "its path"))
    return problems


def _hugging_face_cache(found: ModelCard) -> Path | None:
    """The snapshot in Hugging Face's cache, if it is whole."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    for revision in filter(None, (found.revision, "main")):
        config = try_to_load_from_cache(found.repository, CONFIG, revision=revision)
        if not isinstance(config, str):
            continue
        with suppress(InputError):
            weight_files(main_file(Path(config).parent))
            return Path(config).parent
    return None
