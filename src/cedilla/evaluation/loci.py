"""Loci of a table: the rows, splits and blocks that every arm of a comparison shares."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cedilla.dna.tables import SequenceTable, read_sequences
from cedilla.errors import Problem, stop_on_errors
from cedilla.evaluation.confidence import genomic_blocks
from cedilla.methylation.check import check_probes
from cedilla.methylation.columns import Description, recognise
from cedilla.methylation.coordinates import CHROMOSOME_LENGTHS, bare_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Loci:
    """The rows that every arm sees.

    sequences, labels (N,), beta (N,), annotation (N, A), groups (N,), blocks (N,), splits (N,) of
    train, dev and test; `record` names a row before its id, as in ``loci.csv line``; `read` rows
    were in the file, and `left_out` says why some are not here.
    """

    ids: list[str]
    sequences: list[str]
    labels: np.ndarray
    beta: np.ndarray
    annotation: np.ndarray
    groups: np.ndarray
    blocks: np.ndarray
    block_kind: str
    splits: np.ndarray
    record: str
    read: int
    left_out: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: int((self.splits == split).sum()) for split in ("train", "dev", "test")}


def read_loci(
    path: Path,
    *,
    columns: dict[str, str],
    annotation: tuple[str, ...],
    dev: tuple[str, ...],
    test: tuple[str, ...],
    drop: tuple[str, ...],
    position: str | None,
    block_size: int,
    rows: int | None,
) -> Loci:
    """Read and check a table of loci; `columns` names sequence, label, beta and group.

    `position` is 0-based. Raises :class:`InputError` with every problem found.
    """
    asked = [columns["beta"], columns["group"], *annotation, *([position] if position else [])]
    problems: list[Problem] = []
    table = read_sequences(
        path,
        sequence=columns["sequence"],
        label=columns["label"],
        extra=list(dict.fromkeys(asked)),
        collect=problems,
    )
    position = position or _position_column(list(table.frame.columns), columns["group"])
    values, found = _read_values(table, columns, annotation, position)
    problems += found + _check_roles([*columns.values(), *annotation], path)
    problems += _check_places(table, columns, values)
    problems += _check_groups(values.groups, dev, test, drop, f"{path} column {columns['group']}")
    problems += _check_classes(table, f"{path} column {columns['label']}")
    stop_on_errors(problems)
    splits, left_out = _split(values, columns, {"dev": dev, "test": test, "": drop}, rows)
    loci = _kept(table, values, splits, left_out, block_size)
    _check_splits(loci, path)
    return loci


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """The columns of all rows: groups (N,), "" for none; numbers (N,) and (N, A), NaN for none."""

    groups: np.ndarray
    beta: np.ndarray
    annotation: np.ndarray
    position: str | None
    start0: np.ndarray


def _read_values(
    table: SequenceTable,
    columns: dict[str, str],
    annotation: Sequence[str],
    position: str | None,
) -> tuple[_Values, list[Problem]]:
    """The columns of numbers and the groups, with what is wrong in the numbers."""
    frame = table.frame
    beta, problems = _numeric(frame, columns["beta"], table.path, within=(0.0, 1.0))
    start0 = np.zeros(len(frame))
    if position:
        start0, found = _numeric(frame, position, table.path, within=(0.0, np.inf))
        problems += found
    known = [_numeric(frame, name, table.path) for name in annotation]
    values = _Values(
        # Whole numbers that stood in a column with gaps come as floats: 7.0 is chromosome 7.
        groups=frame[columns["group"]]
        .convert_dtypes()
        .astype("string")
        .fillna("")
        .to_numpy(dtype=object),
        beta=beta,
        annotation=np.stack([a for a, _ in known], 1) if known else np.empty((len(frame), 0)),
        position=position,
        start0=start0,
    )
    return values, problems + [problem for _, found in known for problem in found]


def _split(
    values: _Values,
    columns: dict[str, str],
    chosen: dict[str, Sequence[str]],
    rows: int | None,
) -> tuple[np.ndarray, dict[str, int]]:
    """The split (N,) of every row, "" where it is left out, and how many are, by reason.

    chosen: the groups of dev, of test and, as "", those to leave out.
    """
    groups, group, drop = values.groups, columns["group"], chosen[""]
    splits = np.full(len(groups), "train", dtype=object)
    for split in ("dev", "test"):
        splits[np.isin(groups, chosen[split])] = split
    left_out = {}
    for reason, gone in (
        (f"{group} is one of {', '.join(drop)}", np.isin(groups, drop)),
        (f"no {group}", groups == ""),
        (f"no {values.position}", np.isnan(values.start0)),
        (f"no {columns['beta']}", np.isnan(values.beta)),
    ):
        left_out[reason] = int((gone & (splits != "")).sum())
        splits[gone] = ""
    beyond = _beyond(splits, rows)
    left_out["beyond --rows"] = int(beyond.sum())
    splits[beyond] = ""
    return splits, {reason: n for reason, n in left_out.items() if n}


def _kept(
    table: SequenceTable,
    values: _Values,
    splits: np.ndarray,
    left_out: dict[str, int],
    block_size: int,
) -> Loci:
    """The rows that are in a split, with their blocks."""
    keep = np.flatnonzero(splits != "")
    blocks, kind = np.arange(len(keep)).astype(str), "single rows"
    if values.position:
        blocks = genomic_blocks(values.groups[keep].astype(str), values.start0[keep], block_size)
        kind = f"blocks of {block_size / 1e6:g} Mb"
    return Loci(
        ids=[table.ids[i] for i in keep],
        sequences=[table.sequences[i] for i in keep],
        labels=np.asarray(table.labels)[keep],
        beta=values.beta[keep],
        annotation=values.annotation[keep],
        groups=values.groups[keep],
        blocks=blocks,
        block_kind=kind,
        splits=splits[keep].astype(str),
        record=f"{table.path} {table.frame.attrs['record']}",
        read=len(table),
        left_out=left_out,
    )


def _position_column(columns: Sequence[str], group: str) -> str | None:
    """The position that goes with a chromosome column: start_hg19 beside chrom_hg19."""
    for word in ("chromosome", "chrom", "chr"):
        for name in ("start0", "start", "pos0"):
            if group.startswith(word) and (found := group.replace(word, name, 1)) in columns:
                return found
    return None


def _numeric(
    frame: pd.DataFrame, column: str, path: Path, *, within: tuple[float, float] | None = None
) -> tuple[np.ndarray, list[Problem]]:
    """A column as float64 (N,), empty cells as NaN, with what is wrong in it."""
    raw = frame[column]
    values = pd.to_numeric(raw, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    texts = np.isnan(values) & raw.notna().to_numpy()
    kinds = [
        (texts, f"{column} is not a number", "leave an unknown value empty"),
        (np.isinf(values), f"{column} is infinite", "leave an unknown value empty"),
    ]
    if within is not None:
        outside = np.isfinite(values) & ((values < within[0]) | (values > within[1]))
        what, mend = f"{column} is outside [{within[0]:g}, {within[1]:g}]", "correct it"
        if within[1] == 1 and _like_percent(values):
            what, mend = f"{what} and looks like percent", "divide all of it by 100"
        kinds.append((outside, what, mend))
    return values, [p for bad, what, mend in kinds for p in _counted(raw, bad, path, what, mend)]


def _like_percent(values: np.ndarray) -> bool:
    """Most values lie above 1, none below 0, and the highest is too high for a slip."""
    known = values[np.isfinite(values)]
    top = known.max(initial=0.0)
    return bool(known.min(initial=0.0) >= 0 and 2 < top <= 100 and (known > 1).mean() > 0.5)


def _counted(raw: pd.Series, bad: np.ndarray, path: Path, what: str, mend: str) -> list[Problem]:
    """One problem for all rows of a column where `bad` (N,) is true, with the first three."""
    if not bad.any():
        return []
    few = np.flatnonzero(bad)[:3]
    first = [f"{str(raw.iloc[i])!r} in {raw.attrs['record']} {raw.index[i]}" for i in few]
    what += f" ({int(bad.sum()):,} rows: {', '.join(first)}{', …' if bad.sum() > 3 else ''})"
    return [Problem(where=str(path), what=what, mend=mend)]


def _check_places(table: SequenceTable, columns: dict[str, str], values: _Values) -> list[Problem]:
    """Positions lie on their chromosome, and probe ids, if there are any, are well formed."""
    frame, group = table.frame, columns["group"]
    said = Description(
        beta=columns["beta"],
        chrom=group,
        position=values.position,
        label=columns["label"],
        sequence=columns["sequence"],
    )
    known, _ = recognise(frame, said, table.path)
    # A table that is grouped by probe has several rows of each on purpose.
    by_probe = known.probes is not None and known.probes.name == group
    problems = [] if by_probe else check_probes(known)
    # Without a build in the column's name this may be any genome, whose lengths are not known.
    if values.position and known.build:
        of = pd.Series(_bare(values.groups.tolist())).map(CHROMOSOME_LENGTHS[known.build])
        last0 = of.to_numpy(dtype=np.float64, na_value=np.nan) - 1 + known.base
        what = f"{values.position} lies beyond the end of its chromosome in {known.build}"
        beyond = np.isfinite(values.start0) & (values.start0 > last0)
        mend = "name the position of the right build"
        problems += _counted(frame[values.position], beyond, table.path, what, mend)
    return problems


def _check_classes(table: SequenceTable, where: str) -> list[Problem]:
    """Labels are 0 and 1; a single class, or an unusable label (-1), has been reported."""
    labels = np.asarray(table.labels)
    classes = np.unique(labels[labels >= 0]).tolist()
    if len(classes) < 2 or classes == [0, 1]:
        return []
    what = f"has the classes {', '.join(map(str, classes[:5]))}"
    return [Problem(where=where, what=what, mend="a comparison takes a label of 0 and 1")]


def _check_roles(columns: Sequence[str], path: Path) -> list[Problem]:
    """A column that serves twice, such as a beta among the annotation, would give itself away."""
    return [
        Problem(where=f"{path} column {name}", what="is named for two things", mend="name it once")
        for name in dict.fromkeys(columns)
        if columns.count(name) > 1
    ]


def _check_groups(
    groups: np.ndarray,
    dev: Sequence[str],
    test: Sequence[str],
    drop: Sequence[str],
    where: str,
) -> list[Problem]:
    """Groups that are not in the table, that stand in two lists, or in the table by two names."""
    known = sorted(set(groups) - {""})
    problems = _check_names(known, where)
    spelled = dict(zip(_bare(known), known, strict=True))
    for option, names in (("--dev", dev), ("--test", test), ("--drop", drop)):
        for name, bare in zip(names, _bare(names), strict=True):
            other = spelled.get(bare)
            # A sex chromosome that the table has not is as well as dropped.
            if name in known or (option == "--drop" and other is None):
                continue
            near = difflib.get_close_matches(name, known, n=1) or known[:5]
            mend = f"write {other}" if other else f"it has {', '.join(near)}"
            problems.append(Problem(where=where, what=f"has no {name!r} ({option})", mend=mend))
    twice = sorted((set(dev) & set(test)) | (set(drop) & (set(dev) | set(test))))
    if twice:
        problems.append(
            Problem(where=where, what=f"{', '.join(twice)} in two lists", mend="name each once")
        )
    return problems


def _check_names(known: Sequence[str], where: str) -> list[Problem]:
    """Chromosomes are named one way: each by one name, and all with chr or all without."""
    spellings: dict[str, list[str]] = {}
    for name, bare in zip(known, _bare(known), strict=True):
        spellings.setdefault(bare, []).append(name)
    both = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    chromosomes = CHROMOSOME_LENGTHS["hg19"]
    human = [n for bare, names in spellings.items() if bare in chromosomes for n in names]
    long = [name for name in human if name.casefold().startswith("chr")]
    short = [name for name in human if name not in long]
    if both:
        what = f"has {', '.join(both[:3])}: one chromosome, two names"
    elif long and short:
        what = f"names are mixed, as in {long[0]} ({len(long)} with chr) and {short[0]} " + (
            f"({len(short)} without)"
        )
    else:
        return []
    return [Problem(where=where, what=what, mend="name chromosomes one way")]


def _bare(names: Sequence[str]) -> list[str]:
    """Names of chromosomes without chr, the same however they are written."""
    return bare_names(pd.Series(list(names), dtype="str").str.strip().str.upper()).tolist()


def _beyond(splits: np.ndarray, rows: int | None) -> np.ndarray:
    """Training rows that a limit leaves out, drawn once."""
    beyond = np.zeros(len(splits), dtype=bool)
    train = np.flatnonzero(splits == "train")
    if rows is not None and rows < len(train):
        beyond[np.random.default_rng(0).permutation(train)[rows:]] = True
    return beyond


def _check_splits(loci: Loci, path: Path) -> None:
    """Every split needs both classes, and the test two blocks at least."""
    problems = [
        Problem(
            where=str(path),
            what=f"{split} has {n:,} rows of the classes {sorted(set(labels.tolist()))}",
            mend="choose other groups: every split needs both classes",
        )
        for split, n in loci.counts.items()
        if len(set((labels := loci.labels[loci.splits == split]).tolist())) < 2
    ]
    if len(set(loci.blocks[loci.splits == "test"].tolist())) == 1:
        what = "all test rows lie in one block, and nothing can be resampled"
        problems.append(Problem(where=str(path), what=what, mend="lower --block-size"))
    stop_on_errors(problems)
