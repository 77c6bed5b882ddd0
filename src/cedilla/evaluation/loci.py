"""Loci of a table: the rows, splits and blocks that every arm of a comparison shares."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cedilla.dna.tables import read_sequences, read_table
from cedilla.errors import Problem, stop_on_errors
from cedilla.evaluation.confidence import genomic_blocks


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

    Raises :class:`InputError` with every problem found.
    """
    group = columns["group"]
    position = position or _position_column(list(read_table(path).columns), group)
    table = read_sequences(
        path,
        sequence=columns["sequence"],
        label=columns["label"],
        extra=list(
            dict.fromkeys([columns["beta"], group, *annotation, *([position] if position else [])])
        ),
    )
    frame = table.frame
    # Whole numbers that stood in a column with gaps come as floats: 7.0 is chromosome 7.
    named = frame[group].convert_dtypes()
    groups = named.astype("string").fillna("").to_numpy(dtype=object)
    beta, problems = _numeric(frame, columns["beta"], path, within=(0.0, 1.0))
    start0 = np.zeros(len(frame))
    if position:
        start0, found = _numeric(frame, position, path, within=(0.0, np.inf))
        problems += found
    known = [_numeric(frame, name, path) for name in annotation]
    problems += [problem for _, found in known for problem in found]
    problems += _check_roles([*columns.values(), *annotation], path)
    problems += _check_groups(groups, dev, test, drop, f"{path} column {group}")
    classes = np.unique(np.asarray(table.labels))
    if len(classes) != 2 or classes.max() != 1:
        problems.append(
            Problem(
                where=f"{path} column {columns['label']}",
                what=f"has the classes {', '.join(map(str, classes[:5]))}",
                mend="a comparison takes a label of 0 and 1",
            )
        )
    stop_on_errors(problems)
    splits = np.where(np.isin(groups, test), "test", np.where(np.isin(groups, dev), "dev", "train"))
    splits = splits.astype(object)
    left_out = {}
    for reason, gone in (
        (f"{group} is one of {', '.join(drop)}", np.isin(groups, drop)),
        (f"no {group}", named.isna().to_numpy()),
        (f"no {position}", np.isnan(start0)),
        (f"no {columns['beta']}", np.isnan(beta)),
    ):
        left_out[reason] = int((gone & (splits != "")).sum())
        splits[gone] = ""
    beyond = _beyond(splits, rows)
    left_out["beyond --rows"] = int(beyond.sum())
    splits[beyond] = ""
    keep = np.flatnonzero(splits != "")
    blocks, kind = np.arange(len(keep)).astype(str), "single rows"
    if position:
        blocks = genomic_blocks(groups[keep].astype(str), start0[keep], block_size)
        kind = f"blocks of {block_size / 1e6:g} Mb"
    loci = Loci(
        ids=[table.ids[i] for i in keep],
        sequences=[table.sequences[i] for i in keep],
        labels=np.asarray(table.labels)[keep],
        beta=beta[keep],
        annotation=np.stack([a for a, _ in known], 1)[keep] if known else np.empty((len(keep), 0)),
        groups=groups[keep],
        blocks=blocks,
        block_kind=kind,
        splits=splits[keep].astype(str),
        record=f"{path} {frame.attrs['record']}",
        read=len(frame),
        left_out={reason: n for reason, n in left_out.items() if n},
    )
    _check_splits(loci, path)
    return loci


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
    bad = np.isnan(values) & raw.notna().to_numpy()
    what, mend = f"{column} is not a number", "leave an unknown value empty"
    if not bad.any() and within is not None:
        bad = (values < within[0]) | (values > within[1])
        what, mend = f"{column} is outside [{within[0]:g}, {within[1]:g}]", "correct it"
        if np.nanmax(values, initial=0.0) > 2 and np.nanmax(values) <= 100:
            mend = "percent values? divide them by 100"
    if not bad.any():
        return values, []
    first = [f"{str(raw.iloc[i])!r} in {frame.attrs['record']} {frame.index[i]}" for i in _few(bad)]
    what += f" ({int(bad.sum()):,} rows: {', '.join(first)}{', …' if bad.sum() > 3 else ''})"
    return values, [Problem(where=str(path), what=what, mend=mend)]


def _few(chosen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen)[:3]


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
    problems = []
    if both := [name for name in known if f"chr{name}" in known]:
        what = f"has {', '.join(f'{n} and chr{n}' for n in both[:3])}: one chromosome, two names"
        problems.append(Problem(where=where, what=what, mend="name chromosomes one way"))
    for option, names in (("--dev", dev), ("--test", test), ("--drop", drop)):
        for name in names:
            # A sex chromosome that the table has not is as well as dropped.
            if name not in known and option != "--drop":
                near = difflib.get_close_matches(name, known, n=1) or known[:5]
                problems.append(
                    Problem(
                        where=where,
                        what=f"has no {name!r} ({option})",
                        mend=f"it has {', '.join(near)}",
                    )
                )
    twice = sorted((set(dev) & set(test)) | (set(drop) & (set(dev) | set(test))))
    if twice:
        problems.append(
            Problem(where=where, what=f"{', '.join(twice)} in two lists", mend="name each once")
        )
    return problems


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
