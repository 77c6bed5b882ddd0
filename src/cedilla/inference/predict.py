"""Predict with a fine-tuned model: new sequences in, calibrated answers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cedilla.dna.alphabet import clean
from cedilla.dna.inputs import open_input
from cedilla.dna.records import Findings, Record, Source
from cedilla.errors import InputError, stop_on_errors, unmet
from cedilla.files import sha256, whole_file
from cedilla.inference.estimate import duration_text, peak_memory, size_text
from cedilla.inference.parts import Parts, differences, refuse_changes
from cedilla.inference.survey import Reading, Survey, survey
from cedilla.inference.tiles import Strands, Tiling, count_tokens
from cedilla.models.predictor import Precision, device_named
from cedilla.progress import console, progress_bar, track
from cedilla.training.finetuned import LONG_MEND, FinetunedModel, Preprocessing
from cedilla.training.long_sequences import Long
from cedilla.training.model_directory import (
    CLASSIFIER,
    Classifier,
    load_finetuned,
    model_path,
    read_classifier,
)
from cedilla.version import __version__

WHERE = "cedilla predict"
FORMATS = (".parquet", ".csv")
BATCHES_PER_WINDOW = 8  # a kill costs what was done of one window
SAMPLE = 64  # sequences that a dry run measures the time of, at most
Window = list[tuple[str, str]]  # ids and clean sequences


def predict(
    model: Path,
    input: Path | Iterable[str] | Iterable[tuple[str, str]],
    *,
    out: Path,
    base: str | None = None,
    genome: Path | None = None,
    sequence: str = "sequence",
    id: str | None = None,
    long: Long | None = None,
    precision: Precision = "float32",
    device: str | None = None,
    batch_tokens: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Predict what a fine-tuned model was trained to say, for new sequences.

    Every sequence gets a row: id; the predicted class; probabilities as the model gives them, and
    calibrated on dev; and whether the sequence is like those of the training: its `distance` from
    them (above 1 is far), `familiar`, and what is `unlike` them (state, kmers, length, gc). The
    whole input is checked before the model sees any of it. What is finished stays in
    ``.NAME.parts`` beside `out` until all of it is.

    Parameters
    ----------
    model
        The run directory of a fine-tuning, or the model/ in it.
    input
        FASTA, BED (with `genome`), CSV, TSV or Parquet, also gzip or bgzip, told apart by content.
        In Python also an iterable of sequences, or of (id, sequence) pairs.
    out
        Ends in .parquet or .csv.
    base
        Directory of the model that the fine-tuning began with, if only adapters or a head were
        trained and it is no longer where it was.
    genome
        FASTA, plain or bgzip, that BED intervals refer to.
    sequence
        Column of the sequences in a table.
    id
        Column of the ids; by default `id` if the table has one, else the number of the line.
    long
        Sequences longer than the model takes are refused, cropped to their centre, or cut into
        tiles whose answers are averaged; by default as in the training.
    precision
        float32 is exact; auto is the fastest that the device does well.
    device
        Such as cpu or cuda; the first GPU if there is one.
    batch_tokens
        Tokens per batch, about; lower it where memory is short.
    resume
        Go on with an interrupted computation.
    dry_run
        Check the input, print counts, time and memory, and stop.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        With every problem of the settings, of the model's files, or of the input's records.

    Examples
    --------
    cedilla predict runs/promoters new.fa.gz --out predictions.parquet
    cedilla predict runs/peaks peaks.bed --genome hg38.fa --out predictions.csv
    """
    out = Path(out)
    parts = Parts(out)
    _check(out, parts, device, batch_tokens, begun=resume or dry_run)
    path = model_path(model)
    about = read_classifier(path)
    how = _preprocessing(about, out, long)
    with open_input(input, genome=genome, sequence=sequence, id=id) as (name, source):
        checked = partial(_with_bar, partial(_refusing_long, source, how=how))
        found = survey(checked, name, _tiling(how))
        _say_notes(found, how)
        loaded = load_finetuned(path, base, device=device, precision=precision)
        loaded.preprocessing = how
        loaded.batch_tokens = batch_tokens or _before(parts, loaded)
        reading = Reading(source, name)
        stream = _windows(reading, how.k, BATCHES_PER_WINDOW * loaded.batch_tokens)
        if dry_run:
            _say(_estimate(loaded, next(stream), found))
            return out
        facts = _facts(name, found, path, loaded, precision)
        _begin(out, parts, facts)
        _compute(stream, loaded, parts, found)
        if reading.digest != found.digest:
            raise InputError.one(name, "has changed while it was read", f"delete {parts.folder}")
    _WRITERS[out.suffix](out, parts.tables())
    parts.discard()
    _say(f"{found.records:,} rows in {out}")
    return out


def _check(
    out: Path, parts: Parts, device: str | None, batch_tokens: int | None, *, begun: bool
) -> None:
    """Raise :class:`InputError` with all that is wrong before anything is read."""
    rules = [
        (out.suffix in FORMATS, f"--out {out} has no format that can be written",
         f"end its name in {' or '.join(FORMATS)}"),
        (not out.exists(), f"{out} exists already", "delete it, or choose another --out"),
        (
            begun or not parts.exists(),
            f"{out} was begun and interrupted; its parts are in {parts.folder}",
            "pass --resume, or delete them",
        ),
        (batch_tokens is None or batch_tokens > 0, f"--batch-tokens {batch_tokens} is impossible",
         "1 at least"),
    ]  # fmt: skip
    problems = unmet(WHERE, rules)
    try:
        device_named(device)
    except InputError as error:
        problems += error.problems
    stop_on_errors(problems)


def _preprocessing(about: Classifier, out: Path, long: Long | None) -> Preprocessing:
    """How sequences are read: as in the training, but for what becomes of long ones."""
    per_base = about.target.kind == "per_base"
    rules = [
        (
            not per_base or long in (None, "refuse"),
            f"--long {long} would leave bases without an answer",
            "cut the sequences yourself",
        ),
        (
            not per_base or out.suffix == ".parquet",
            f"{out.suffix} has no columns of lists, which answers for single bases are",
            "end --out in .parquet",
        ),
    ]
    stop_on_errors(unmet(WHERE, rules))
    return replace(about.preprocessing, long=long or about.preprocessing.long)


def _tiling(how: Preprocessing) -> Tiling:
    capacity = how.max_tokens - 1
    strands: Strands = "both" if how.strands else "forward"
    return Tiling(k=how.k, capacity=capacity, overlap=capacity // 4, strands=strands)


def _refusing_long(source: Source, findings: Findings, *, how: Preprocessing) -> Iterator[Record]:
    """The records of `source`; those that are refused for their length are among the findings."""
    for record in source(findings):
        if how.long == "refuse":
            tokens = 1 + count_tokens(clean(record.sequence), how.k)
            if tokens > how.max_tokens:
                what = f"has {tokens:,} tokens; the model takes {how.max_tokens:,}"
                findings.add("long", where=record.where, what=what, mend=LONG_MEND)
        yield record


def _with_bar(source: Source, findings: Findings) -> Iterator[Record]:
    return track(source(findings), "checking", transient=True)


def _say_notes(found: Survey, how: Preprocessing) -> None:
    if found.ambiguous:
        many = f"{found.ambiguous:,} IUPAC codes such as R or Y (sequences with them: "
        _say(f"note: {many}{found.ambiguous_records:,}) are read as N")
    if found.unknown:
        _say(f"note: bases that are N: {found.unknown:,} of {found.bases:,}")
    if found.tiled:
        does = {"crop": "cropped to their centre", "tile": "read in tiles"}[how.long]
        _say(f"note: sequences longer than the model takes, {does}: {found.tiled:,}")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _before(parts: Parts, loaded: FinetunedModel) -> int:
    """Tokens per batch: as the computation was begun with, else as fits the device."""
    begun: Mapping[str, Any] = parts.facts["settings"] if parts.exists() else {}
    return int(begun.get("batch_tokens", loaded.batch_tokens))


def _windows(reading: Iterable[tuple[str, str]], k: int, tokens: int) -> Iterator[Window]:
    """Consecutive sequences that have about so many tokens together, and are computed at once."""
    window: Window = []
    held = 0
    for record in reading:
        window.append(record)
        held += 1 + count_tokens(record[1], k)
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


def _table(loaded: FinetunedModel, window: Window) -> pa.Table:
    ids, sequences = zip(*window, strict=True)
    return pa.table({"id": pa.array(ids, pa.string()), **loaded.columns(sequences)})


def _estimate(loaded: FinetunedModel, window: Window, found: Survey) -> str:
    how = loaded.preprocessing
    longest = 4 * how.max_tokens * how.k  # a chromosome in tiles would take its time
    some = [(id, bases[:longest]) for id, bases in window[:: max(1, len(window) // SAMPLE)]]
    _table(loaded, some[:1])  # the first call pays for what later ones find ready
    start = time.perf_counter()
    table = _table(loaded, some)
    tokens = sum(count_tokens(bases, how.k) for _, bases in some)
    seconds = (time.perf_counter() - start) * found.tokens / tokens
    size = table.nbytes / len(some) * found.records
    return (
        f"sequences: {found.records:,}; bases: {found.bases:,}; tokens: {found.tokens:,}; "
        f"time: about {duration_text(seconds)} on {loaded.path}; "
        f"memory: {size_text(peak_memory() + 2 * found.longest)}; "
        f"size of the result: {size_text(size)}, and as much again while it is made"
    )


def _facts(
    name: str, found: Survey, path: Path, loaded: FinetunedModel, precision: Precision
) -> dict[str, Any]:
    """All that the result depends on, see :class:`Parts`."""
    return {
        "input": name,
        "sha256": {"input": found.digest, "model": sha256(path / CLASSIFIER)},
        "settings": {
            "long": loaded.preprocessing.long,
            "precision": precision,
            "batch_tokens": loaded.batch_tokens,
        },
        "computed": {
            "path": loaded.path,
            "cedilla": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }


def _begin(out: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """Start, or go on where `facts` are those that the computation was begun with."""
    if not parts.exists():
        parts.begin(facts)
    refuse_changes(out, parts.facts, facts)
    if damaged := parts.sweep():
        _say(f"note: parts computed again, from the first damaged one on: {damaged:,}")
    for change in differences(parts.facts["computed"], facts["computed"]):
        _say(f"note: {change}: last digits may differ")


def _compute(stream: Iterator[Window], loaded: FinetunedModel, parts: Parts, found: Survey) -> None:
    """Predict all windows whose parts are not there yet."""
    done = parts.count()
    with progress_bar(unit="sequences") as bar:
        task = bar.add_task("predicting", total=found.records)
        for number, window in enumerate(stream):
            if number >= done:
                parts.save(number, _table(loaded, window), {})
            bar.advance(task, len(window))
    _say_unlike(parts, loaded)


def _say_unlike(parts: Parts, loaded: FinetunedModel) -> None:
    columns = [table.select(["familiar", "distance"]) for table in parts.tables()]
    table = pa.concat_tables(columns)
    unlike = len(table) - sum(table.column("familiar").to_pylist())
    if unlike:
        many = f"{unlike:,} of {len(table):,}"
        _say(f"note: sequences unlike those of the training: {many}; see the column `unlike`")
    median, usual = np.median(table.column("distance")), loaded.familiarity.median
    _say(f"note: their median distance from the training is {median:.2f}; of dev rows {usual:.2f}")


def _write_parquet(out: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with whole_file(out) as draft, pq.ParquetWriter(draft, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))


def _write_csv(out: Path, tables: Iterator[pa.Table]) -> None:
    with whole_file(out) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        for number, table in enumerate(tables):
            table.to_pandas().to_csv(file, index=False, header=number == 0, lineterminator="\n")


_WRITERS: dict[str, Callable[[Path, Iterator[pa.Table]], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
