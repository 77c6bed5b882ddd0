"""Embed sequences: what a model makes of them, as vectors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from cedilla.dna.inputs import open_input
from cedilla.dna.records import Findings, Record, Source
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError, Problem, stop_on_errors, unmet
from cedilla.inference.estimate import estimate, refuse_full_disk
from cedilla.inference.layout import Layout, matrix
from cedilla.inference.parts import Parts, differences, refuse_changes
from cedilla.inference.pooling import Pooling, pooler
from cedilla.inference.stores import Store, facts_in, store_of
from cedilla.inference.survey import Reading, Survey, survey
from cedilla.inference.tiles import Strands, Tile, Tiling, cut
from cedilla.inference.windows import Reader, windows, work
from cedilla.models.families import Config, LanguageModel, prepare
from cedilla.models.predictor import Precision, device_named
from cedilla.models.predictor import batch_tokens as batch_tokens_of
from cedilla.models.weights import read_config
from cedilla.models.zoo import directory, load
from cedilla.progress import console, progress_bar, track
from cedilla.version import __version__

# Where each token or base has a row, rows and not the model take the memory.
POSITIONS_SHARE = 4
BATCHES_PER_WINDOW = 2  # a kill costs what was done of one window


def embed(
    input: Path | Iterable[str] | Iterable[tuple[str, str]],
    *,
    out: Path,
    model: str = "mini",
    layers: tuple[int, ...] = (-1,),
    pooling: Pooling = "mean",
    strands: Strands = "forward",
    skip_n: bool = False,
    genome: Path | None = None,
    sequence: str = "sequence",
    id: str | None = None,
    overlap: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    precision: Precision = "float32",
    device: str | None = None,
    batch_tokens: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Embed sequences: one vector a sequence, a token or a base, from any layers of a model.

    The whole input is checked before the model sees any of it. Sequences are read one at a time, in
    any number; those that are longer than the model's context are read in tiles that overlap, and
    stitched. What is finished stays in ``.NAME.parts`` beside `out` until all of it is.

    Parameters
    ----------
    input:
        FASTA, BED (with `genome`), CSV, TSV or Parquet, also gzip or bgzip, told apart by content.
        In Python also an iterable of sequences, or of (id, sequence) pairs.
    out:
        Ends in .parquet (columns id, layer_12, …), .zarr or .h5ad (AnnData), or .npy (its ids in
        .rows.csv beside).
    model:
        A name of the zoo (see `cedilla models`) or a directory.
    layers:
        Such as 6,12; 0 is the embedding output, and negative numbers count from the end, as in
        --layers=-2,6.
    pooling:
        Over tokens, without pads and special tokens: mean or max; cls is the vector of the first
        token. token and base give a row each; a base has the vector of its k-mer.
    strands:
        both: the mean of a sequence's vector and that of its reverse complement.
    skip_n:
        Leave the tokens of N out of mean and max; else each N weighs as much as a k-mer.
    genome:
        FASTA, plain or bgzip, that BED intervals refer to.
    sequence:
        Column of the sequences in a table.
    id:
        Column of the ids; by default `id` if the table has one, else the number of the line.
    overlap:
        Bases that neighbouring tiles share at least; a tenth of the context by default.
    dtype:
        Of the numbers written.
    precision:
        float32 is exact; auto is the fastest that the device does well.
    device:
        Such as cpu or cuda; the first GPU if there is one.
    batch_tokens:
        Tokens per batch, about: by default 65,536 on a GPU, 16,384 on a CPU or more where it has
        many cores; a quarter where each token or base has a row. Lower it where memory is short.
    resume:
        Go on with an interrupted computation; the result is the same to the byte.
    dry_run:
        Check the input, print counts, time, memory and size of the result, and stop.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        With every problem of the settings, or of the input's records.

    Examples
    --------
    cedilla embed promoters.fa.gz --model mini --layers 3,5 --out promoters.parquet
    cedilla embed peaks.bed --genome hg38.fa --strands both --out peaks.h5ad
    """
    settings = dict(locals())
    out = Path(out)
    if not out.name:
        raise InputError.one("cedilla embed", "--out is empty", "name a file")
    parts = Parts(out)
    _check(out, parts, settings)
    with open_input(input, genome=genome, sequence=sequence, id=id) as (name, source):
        config = read_config(directory(model) / "config.json")
        chosen, tiling = _plan(config, layers, overlap, strands)
        found = survey(partial(_with_bar, source), name, tiling, known_only=skip_n)
        _say_notes(found, pooling, skip_n=skip_n)
        layout = Layout(
            pooling=pooling,
            layers=chosen,
            width=config.hidden_size,
            dtype=dtype,
            rows={"token": found.tokens, "base": found.bases}.get(pooling, found.records),
        )
        network = load(model)
        settings = asdict(tiling) | {
            "pooling": pooling,
            "layers": list(chosen),
            "skip_n": skip_n,
            "dtype": dtype,
            "precision": precision,
            **_defaults(out, parts, pooling, device=device, batch_tokens=batch_tokens),
        }
        facts = {
            "input": name,
            "model": Path(model).name,
            "sha256": {"input": found.digest, "model": _digest(network)},
            "settings": settings,
        }
        begun = {} if dry_run else _facts_of(out, parts)
        if begun:
            refuse_changes(out, begun, facts)
        if begun and out.exists():
            parts.discard()
            _say(f"{out} is complete")
            return out
        reader = _reader(network, settings, begun["computed"]["path"] if begun else None)
        reading = Reading(source, name)
        tiles = (tile for id, bases in reading for tile in cut(id, bases, tiling))
        stream = windows(tiles, BATCHES_PER_WINDOW * settings["batch_tokens"])
        if dry_run:
            _say(estimate(reader, next(stream), found, layout))
            return out
        refuse_full_disk(out, layout, parts.size())
        facts = _begin(parts, facts, reader.path)
        _compute(stream, reader, parts, layout, found)
        if reading.digest != found.digest:
            raise InputError.one(name, "has changed while it was read", f"delete {parts.folder}")
    _publish(out, store_of(out), parts, layout, facts)
    return out


def _check(out: Path, parts: Parts, settings: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` with all that is wrong before anything is read."""
    pooling, tokens = settings["pooling"], settings["batch_tokens"]
    begun = settings["resume"] or settings["dry_run"]
    rules = [
        (tokens is None or tokens > 0, f"--batch-tokens {tokens} is impossible", "1 at least"),
        (
            not settings["skip_n"] or pooling in ("mean", "max"),
            f"--skip-n goes with --pooling mean or max, not {pooling}",
            "leave it out",
        ),
        (
            pooling != "token" or settings["strands"] == "forward",
            "--pooling token is impossible on both strands, whose tokens cover different bases",
            "--pooling base gives the mean for each base",
        ),
        (begun or not out.exists(), f"{out} exists already", "delete it, or choose another --out"),
        (
            begun or not parts.exists(),
            f"{out} was begun and interrupted; its parts are in {parts.folder}",
            "pass --resume, or delete them",
        ),
    ]
    problems = unmet("cedilla embed", rules)
    for check in (
        partial(_check_beside, out, begun=begun),
        partial(device_named, settings["device"]),
    ):
        try:
            check()
        except InputError as error:
            problems += error.problems
    stop_on_errors(problems)


def _check_beside(out: Path, *, begun: bool) -> None:
    """Raise :class:`InputError` for a format that is not written, or files that would be lost."""
    further = [out.with_suffix(suffix) for suffix in store_of(out).beside]
    stop_on_errors(
        Problem(where="cedilla embed", what=f"{path} exists already", mend="delete it")
        for path in further
        if path.exists() and not begun
    )


def _defaults(
    out: Path, parts: Parts, pooling: Pooling, *, device: str | None, batch_tokens: int | None
) -> dict[str, Any]:
    """Device and batch: as told, else as the computation was begun with, else as fits here."""
    before = _facts_of(out, parts).get("settings", {})
    chosen = device_named(device or before.get("device"))
    usual = batch_tokens_of(chosen)
    if pooling in ("token", "base"):
        usual //= POSITIONS_SHARE
    tokens = batch_tokens or before.get("batch_tokens") or usual
    return {"device": str(chosen), "batch_tokens": tokens}


def _plan(
    config: Config, layers: Sequence[int], overlap: int | None, strands: Strands
) -> tuple[tuple[int, ...], Tiling]:
    """The layers, counted from 0, and how sequences are cut for a model."""
    where, states = "cedilla embed", config.last_layer + 1
    capacity = config.max_tokens - 1
    shared = capacity // 10 if overlap is None else overlap // config.k
    chosen = tuple(layer % states for layer in layers)
    problems = [
        Problem(
            where=where,
            what=f"--layers {layer}: the model has 0 to {states - 1}",
            mend="0 is the embedding output, -1 the last layer",
        )
        for layer in layers
        if not -states <= layer < states
    ]
    if len(set(chosen)) < len(chosen) or not chosen:
        what, mend = "--layers has none, or one of them twice", "name each once"
        problems.append(Problem(where=where, what=what, mend=mend))
    if not 0 <= shared < capacity / 2:
        what = f"--overlap {overlap} is negative, or half of the context or more"
        mend = f"less than {(capacity + 1) // 2 * config.k:,} bases for this model"
        problems.append(Problem(where=where, what=what, mend=mend))
    stop_on_errors(problems)
    return chosen, Tiling(k=config.k, capacity=capacity, overlap=shared, strands=strands)


def _with_bar(source: Source, findings: Findings) -> Iterator[Record]:
    return track(source(findings), "checking", transient=True)


def _say_notes(found: Survey, pooling: Pooling, *, skip_n: bool) -> None:
    if found.ambiguous:
        many = f"{found.ambiguous:,} IUPAC codes such as R or Y (sequences with them: "
        _say(f"note: {many}{found.ambiguous_records:,}) are read as N")
    if found.unknown and pooling in ("mean", "max"):
        does = "left out" if skip_n else "counted like any other; --skip-n leaves them out"
        _say(f"note: tokens that are N: {found.unknown:,} of {found.tokens:,}, {does}")
    if found.tiled:
        cls = "; their cls is the mean of their tiles' cls" if pooling == "cls" else ""
        _say(f"note: sequences longer than the context, read in tiles: {found.tiled:,}{cls}")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _digest(network: LanguageModel) -> str:
    """SHA-256 of a model's configuration and weights."""
    total = hashlib.sha256(repr(sorted(asdict(network.config).items())).encode())
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _facts_of(out: Path, parts: Parts) -> dict[str, Any]:
    """The facts of the result, or of the parts of one, that stand there, if any do."""
    if out.exists():
        return facts_in(out)
    return parts.facts if parts.exists() else {}


def _reader(network: LanguageModel, settings: Mapping[str, Any], path: str | None) -> Reader:
    """What reads tiles, by a given path, or by the fastest; `network` is used up."""
    tokenizer = Tokenizer.for_model(network)
    pool = pooler(
        settings["pooling"], tokenizer, skip_n=settings["skip_n"], strands=settings["strands"]
    )
    precision, device = settings["precision"], settings["device"]
    predictor = prepare(network, precision=precision, device=device, path=path, release=True)
    return Reader(predictor, tokenizer, settings["layers"], pool, settings["batch_tokens"])


def _begin(parts: Parts, facts: dict[str, Any], path: str) -> dict[str, Any]:
    """Start, or go on; the facts that the computation was begun with."""
    computed = {
        "path": path,
        "cedilla": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if not parts.exists():
        parts.begin(facts | {"computed": computed})
    if damaged := parts.sweep():
        _say(f"note: parts computed again, from the first damaged one on: {damaged:,}")
    begun = parts.facts
    for change in differences(begun["computed"], computed):
        _say(f"note: {change}: last digits may differ")
    return begun


def _compute(
    stream: Iterator[list[Tile]], reader: Reader, parts: Parts, layout: Layout, found: Survey
) -> None:
    """Read all windows whose parts are not there yet."""
    done = parts.count()
    if done:
        reader.pooler.restore(parts.carry(done - 1))
    with progress_bar(unit="tokens") as bar:
        task = bar.add_task("embedding", total=found.work)
        read = 0
        for number, window in enumerate(stream):
            if number < done:
                read += sum(map(work, window))
                bar.reset(task, completed=read)
                continue
            table = layout.table(reader.read(window, lambda n: bar.advance(task, n)))
            _refuse_infinities(table, layout)
            parts.save(number, table, reader.pooler.carry())


def _refuse_infinities(table: pa.Table, layout: Layout) -> None:
    for name in layout.vectors:
        finite = np.isfinite(matrix(table, name)).all(axis=1)
        if not finite.all():
            id = table.column("id")[int(np.argmin(finite))].as_py()
            mend = "pass --dtype float32 and --precision float32"
            raise InputError.one(f"sequence {id}", f"{name} has numbers that are not finite", mend)


def _publish(out: Path, store: Store, parts: Parts, layout: Layout, facts: dict[str, Any]) -> None:
    """Make the result of its parts, and put it in its place whole."""
    draft = parts.folder / out.name
    store.write(draft, parts.tables(), layout, facts)
    for suffix in (*store.beside, out.suffix):
        os.replace(draft.with_suffix(suffix), out.with_suffix(suffix))
    parts.discard()
    _say(f"{layout.rows:,} rows in {out}")
