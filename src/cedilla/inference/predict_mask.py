"""Predict masked bases, and score sequences by how well a model predicts each part of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from cedilla.dna.inputs import open_input
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError, stop_on_errors, unmet
from cedilla.files import whole_file
from cedilla.inference.estimate import duration_text, peak_memory, size_text
from cedilla.inference.likelihood import (
    Masking,
    batches,
    kmer_mass,
    masked_logits,
    maskings,
    pseudo_log_likelihood,
    reverse_complement_mass,
    written_masks,
)
from cedilla.inference.mask_tables import (
    bases_of_masks,
    filled,
    joined,
    kmers_of_masks,
    scores_of_bases,
    scores_of_sequences,
    scores_of_tokens,
)
from cedilla.inference.masks import (
    Masked,
    is_sequence,
    mask_positions,
    read_masked,
    read_positions,
    refuse,
)
from cedilla.models.families import prepare
from cedilla.models.predictor import Precision, Predictor, device_named
from cedilla.models.predictor import batch_tokens as batch_tokens_of
from cedilla.models.zoo import load
from cedilla.progress import console, progress_bar

Per = Literal["kmer", "base", "sequence", "token"]
# Tables by what has a row in them, the default first; made when they are asked for.
Tables = dict[Per, Callable[[], pd.DataFrame]]
LISTED = 5  # k-mers of a mask, where --top does not say
PRINTED = 40  # rows of a table on the terminal
_WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
}


def predict_mask(
    input: str | Path | Iterable[str] | Iterable[tuple[str, str]],
    *,
    out: Path | None = None,
    model: str = "mini",
    score: bool = False,
    per: Per | None = None,
    top: int | None = None,
    position: tuple[str, ...] = (),
    strands: Literal["forward", "both"] = "forward",
    stride: int | None = None,
    genome: Path | None = None,
    sequence: str = "sequence",
    id: str | None = None,
    precision: Precision = "float32",
    device: str | None = None,
    batch_tokens: int | None = None,
    dry_run: bool = False,
) -> pd.DataFrame | None:
    """Predict what stands at `<mask>`, or score sequences by their pseudo-log-likelihood.

    A `<mask>` stands for one k-mer. Its most probable k-mers are listed, and the probability of
    each base at each of its places, summed over k-mers. What the numbers mean is in
    docs/masked_prediction.md.

    Parameters
    ----------
    input:
        A sequence, quoted because of `<mask>`; or FASTA, BED (with `genome`), CSV, TSV or Parquet,
        also gzip. In Python also an iterable of sequences, or of (id, sequence) pairs.
    out:
        A .parquet, .csv or .tsv file for all rows; by default the first ones are printed.
    model:
        A name of the zoo (see `cedilla models`) or a directory.
    score:
        Mask each token in turn, and sum the logarithms of the probabilities, in nats.
    per:
        What has a row: kmer (the default) or base; with `score` sequence (the default), token or
        base.
    top:
        How many k-mers to list of each mask; by default 5, or all 4 of a model over single bases.
    position:
        Bases to mask, from 1, such as 12,40, in every sequence; or the table's column that has
        them. The whole k-mer around each is masked.
    strands:
        both: the mean of a sequence's prediction and that for its reverse complement.
    stride:
        With `score`, mask tokens that are so far apart together: faster, but an approximation.
    genome:
        FASTA, plain or bgzip, that BED intervals refer to.
    sequence:
        Column of the sequences in a table.
    id:
        Column of the ids; by default `id` if the table has one, else the number of the line.
    precision:
        float32 is exact; auto is the fastest that the device does well.
    device:
        Such as cpu or cuda; the first GPU if there is one.
    batch_tokens:
        Tokens per batch: by default 65,536 on a GPU, 16,384 on a CPU or more where it has many
        cores.
    dry_run:
        Check the input, print counts, time and memory, and stop.

    Returns
    -------
    pandas.DataFrame
        All rows; None of a dry run.

    Raises
    ------
    InputError
        With every problem of the settings, or of the input's records.

    Examples
    --------
    cedilla predict-mask "ATTCCGATTCCG<mask>ATTCCGATTCCG" --top 3
    cedilla predict-mask promoters.fa.gz --score --out scores.parquet
    """
    _check(dict(locals()))
    where = device_named(device)
    network = load(model)
    tokenizer = Tokenizer.for_model(network)
    kmers = 4**tokenizer.k
    if top is not None and top > kmers:
        mend = f"the model has {kmers:,} k-mers"
        raise InputError.one("cedilla predict-mask", f"--top {top} is impossible", mend)
    listed = min(LISTED, kmers) if top is None else top
    texts = _read(input, genome=genome, sequence=sequence, id=id)
    texts = _with_masks(texts, input, position, tokenizer.k, score=score)
    predictor = prepare(network, precision=precision, device=where)
    job = _Job(
        texts=texts,
        rows=_tokenized(texts, [text.text for text in texts], tokenizer),
        reverse=None
        if strands == "forward"
        else _tokenized(texts, [text.other_strand() for text in texts], tokenizer),
        tokenizer=tokenizer,
        model=predictor,
        batch_tokens=batch_tokens or batch_tokens_of(where),
    )
    _say_notes(texts, score=score)
    wanted = maskings(job.rows, tokenizer, stride=stride) if score else written_masks(job.rows)
    if dry_run:
        console.print(_estimate(job, wanted), highlight=False, soft_wrap=True)
        return None
    with progress_bar(unit="tokens", transient=True) as bar:
        task = bar.add_task("predicting", total=job.work(wanted))
        advance = partial(bar.advance, task)
        tables = _scores(job, stride, advance) if score else _predictions(job, listed, advance)
    frame = tables[next(iter(tables)) if per is None else per]()
    if out is not None:
        _write(frame, Path(out))
    else:
        both = not score and per is None and len(texts) == 1
        for shown in [frame, tables["base"]()] if both else [frame]:
            _print(shown.drop(columns="id") if len(texts) == 1 else shown)
    return frame


def _check(settings: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` with all settings that are wrong or do not go together."""
    out, per, stride, top = (settings[name] for name in ("out", "per", "stride", "top"))
    score, batch_tokens = settings["score"], settings["batch_tokens"]
    suffix = "" if out is None else Path(out).suffix
    allowed = ("sequence", "token", "base") if score else ("kmer", "base")
    rules = [
        (
            per is None or per in allowed,
            f"--per {per} does not go {'with' if score else 'without'} --score",
            f"take {' or '.join(allowed)}",
        ),
        (top is None or top >= 1, f"--top {top} is impossible", "1 at least"),
        (
            not (score and settings["position"]),
            "--score and --position exclude each other",
            "with --score every base is masked in turn",
        ),
        (stride is None or score, "--stride goes with --score only", "leave it out"),
        (stride is None or stride >= 2, f"--stride {stride} is impossible", "2 at least"),
        (
            per != "token" or settings["strands"] == "forward",
            "--per token is impossible on both strands, whose tokens cover different bases",
            "--per base gives the mean for each base",
        ),
        (
            batch_tokens is None or batch_tokens >= 1,
            f"--batch-tokens {batch_tokens} is impossible",
            "1 at least",
        ),
        (
            out is None or suffix in _WRITERS,
            f"--out {out}: {suffix or 'no ending'} is no format to write",
            f"take {', '.join(_WRITERS)}",
        ),
        (
            out is None or not Path(out).exists(),
            f"{out} exists already",
            "delete it, or choose another --out",
        ),
    ]
    problems = unmet("cedilla predict-mask", rules)
    try:
        device_named(settings["device"])
    except InputError as error:
        problems += error.problems
    stop_on_errors(problems)


def _read(input: Any, *, genome: Path | None, sequence: str, id: str | None) -> list[Masked]:
    if isinstance(input, str) and is_sequence(input):
        input = [input]
    with open_input(input, genome=genome, sequence=sequence, id=id) as (name, source):
        return read_masked(source, name)


def _with_masks(
    texts: list[Masked], input: Any, position: Sequence[str], k: int, *, score: bool
) -> list[Masked]:
    """Whole sequences to `score`, or sequences with a mask at least."""
    if score:
        mend = "leave out --score to predict it"
        refuse(texts, lambda text: text.masks > 0, what="has a <mask>", mend=mend)
    elif position:
        return mask_positions(texts, read_positions(position, input, len(texts)), k)
    else:
        mend = "write one, pass --position, or --score the whole sequence"
        refuse(texts, lambda text: text.masks == 0, what="has no <mask>", mend=mend)
    return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Texts as tokens, on the forward strand and perhaps the other, and what is to read them."""

    texts: list[Masked]
    rows: list[np.ndarray]
    reverse: list[np.ndarray] | None
    tokenizer: Tokenizer
    model: Predictor
    batch_tokens: int

    def work(self, wanted: Sequence[Masking]) -> int:
        """Tokens that the model reads on all strands, which have the same number of them."""
        strands = 1 if self.reverse is None else 2
        return strands * sum(len(self.rows[i]) for i, _ in wanted)


def _tokenized(
    texts: Sequence[Masked], strand: Sequence[str], tokenizer: Tokenizer
) -> list[np.ndarray]:
    rows = tokenizer.encode_ragged(strand)
    longest = (tokenizer.max_tokens - 1) * tokenizer.k
    mend = f"cut it into windows of {longest:,} bases at most, or take a model with more context"
    tokenizer.refuse_long(rows, [text.where for text in texts], mend=mend)
    return rows


def _say_notes(texts: Sequence[Masked], *, score: bool) -> None:
    notes = []
    if ambiguous := sum(text.ambiguous for text in texts):
        notes.append(f"{ambiguous:,} IUPAC codes such as R or Y are read as N")
    if score and (unknown := sum(text.text.count("N") for text in texts)):
        notes.append(f"{unknown:,} bases are N and get no score")
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _estimate(job: _Job, wanted: Sequence[Masking]) -> str:
    """Counts, time and memory, from one real batch."""
    batch = next(batches(job.rows, wanted, job.batch_tokens))
    masked_logits(job.model, job.rows, batch)  # the first call pays for what later ones find ready
    clock = time.perf_counter()
    masked_logits(job.model, job.rows, batch)
    rate = sum(len(job.rows[i]) for i, _ in batch) / (time.perf_counter() - clock)
    tokens = sum(len(at) for _, at in wanted)
    return (
        f"{len(job.texts):,} sequences, {tokens:,} tokens to predict in {len(wanted):,} passes on "
        f"{'one strand' if job.reverse is None else 'each strand'}; "
        f"time: about {duration_text(job.work(wanted) / rate)} at {rate:,.0f} tokens/s; "
        f"memory: {size_text(peak_memory())}"
    )


def _predictions(job: _Job, top: int, advance: Callable[[int], object]) -> Tables:
    """What stands at the masks."""
    parts = []
    turned = None if job.reverse is None else written_masks(job.reverse)
    for batch in batches(job.rows, written_masks(job.rows), job.batch_tokens):
        parts.append(filled(_mass(job, batch, turned), top, job.tokenizer))
        advance(job.work(batch))
    found = joined(parts)
    return {
        "kmer": lambda: kmers_of_masks(job.texts, found, job.tokenizer),
        "base": lambda: bases_of_masks(job.texts, found, job.tokenizer),
    }


def _mass(job: _Job, batch: Sequence[Masking], turned: list[Masking] | None) -> torch.Tensor:
    """The mass (n, 4^k) of k-mers at the n masks of a batch; the mean of the strands.

    turned: the masks of the other strand, if it is read.
    """
    mass = kmer_mass(torch.cat(masked_logits(job.model, job.rows, batch)), job.tokenizer)
    if job.reverse is None or turned is None:
        return mass
    logits = masked_logits(job.model, job.reverse, [turned[i] for i, _ in batch])
    # The masks of the other strand stand in reverse order.
    other = kmer_mass(torch.cat([part.flip(0) for part in logits]), job.tokenizer)
    return (mass + reverse_complement_mass(other)) / 2


def _scores(job: _Job, stride: int | None, advance: Callable[[int], object]) -> Tables:
    """How well each token and base is predicted."""
    rows = job.rows + (job.reverse or [])
    found = pseudo_log_likelihood(
        job.model, rows, batch_tokens=job.batch_tokens, stride=stride, advance=advance
    )
    n = len(job.rows)
    strands = [found[i::n] for i in range(n)]
    return {
        "sequence": lambda: scores_of_sequences(job.texts, strands),
        "token": lambda: scores_of_tokens(job.texts, found, job.rows, job.tokenizer),
        "base": lambda: scores_of_bases(job.texts, strands),
    }


def _write(frame: pd.DataFrame, out: Path) -> None:
    with whole_file(out) as draft:
        _WRITERS[out.suffix](frame, draft)
    console.print(f"{len(frame):,} rows in {out}", highlight=False, soft_wrap=True)


def _print(frame: pd.DataFrame) -> None:
    """The first rows, and how many more there are."""
    table = Table()
    for column in frame:
        is_text = frame[column].dtype.kind in "OUT"
        table.add_column(str(column), justify="left" if is_text else "right", overflow="fold")
    for row in frame.head(PRINTED).itertuples(index=False):
        table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
    Console().print(table)
    if len(frame) > PRINTED:
        rest = f"{len(frame) - PRINTED:,} more rows; --out writes all of them"
        console.print(rest, highlight=False, soft_wrap=True)
