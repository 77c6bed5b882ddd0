"""The verb ``methylation check``: what is wrong with a methylation table, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cedilla.dna.alphabet import first_forbidden
from cedilla.dna.tables import read_table
from cedilla.errors import Problem, stop_on_errors
from cedilla.methylation.betas import check_betas, check_coverage
from cedilla.methylation.columns import (
    Build,
    Description,
    MethylationTable,
    describe,
    recognise,
)
from cedilla.methylation.coordinates import check_coordinates, read_genome_sizes
from cedilla.methylation.probes import are_probe_ids

SEVERITIES = ("error", "warning", "note")
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(slots=True, kw_only=True)
class MethylationDataValidator(Description):
    """Checks methylation tables: betas, probes, coordinates, coverage, labels, sequences.

    The arguments say what :func:`check` takes; columns that are not named are recognised.
    After a validation ``problems`` holds all findings, the errors among them first.

    >>> validator = MethylationDataValidator(build="hg19")
    >>> validator.validate_methylation_data(frame)
    >>> validator.print_summary()
    """

    problems: list[Problem] = field(default_factory=list, init=False)
    name: str = field(default="no table yet", init=False)

    def validate_methylation_data(self, df: pd.DataFrame, *, name: str | Path = "table") -> bool:
        """Whether `df` is free of errors; what was found is in ``problems``.

        Records are named by the index of `df`, `name` stands for the table.
        """
        path, self.name = Path(name), str(name)
        if df.empty:
            mend = "at least one row is needed"
            self.problems = [Problem(where=str(path), what="holds no records", mend=mend)]
            return False
        sizes = read_genome_sizes(self.genome_sizes) if self.genome_sizes else None
        table, found = recognise(df, self, path)
        found += check_betas(table, percent=self.percent)
        found += check_coverage(table)
        found += check_probes(table)
        found += check_coordinates(table, sizes)
        found += check_label(table)
        found += check_sequences(table)
        found.append(describe(table))
        self.problems = sorted(found, key=lambda problem: SEVERITIES.index(problem.severity))
        return not any(problem.severity == "error" for problem in found)

    def print_summary(self) -> None:
        """Print all findings of the last validation as a table."""
        _print(self.problems, self.name)


def check(
    path: Path,
    *,
    beta: str | None = None,
    probe: str | None = None,
    chrom: str | None = None,
    position: str | None = None,
    coverage: str | None = None,
    n_mod: str | None = None,
    sample: str | None = None,
    label: str | None = None,
    sequence: str | None = None,
    base0: bool | None = None,
    percent: bool = False,
    build: Build | None = None,
    genome_sizes: Path | None = None,
) -> list[Problem]:
    """Check a methylation table and report everything that is wrong with it at once.

    The table is CSV, TSV (both also gzipped) or Parquet: a beta a row, or a matrix of probes by
    samples. Columns are recognised by their usual names, and a note says how each was read.
    Errors end with exit code 2; warnings and notes do not.

    Example: cedilla methylation check betas.csv.gz --build hg19

    Parameters
    ----------
    path
        The table.
    beta
        Column of betas; several with commas between.
    probe
        Column of Illumina probe ids.
    chrom
        Column of chromosomes.
    position
        Column of positions.
    coverage
        Column of reads over a site.
    n_mod
        Column of modified reads over a site.
    sample
        Column of samples; a probe may stand once in each.
    label
        Column of labels for a classifier.
    sequence
        Column of DNA sequences.
    base0
        The first base of a chromosome is 0 in the position column (else it is 1); without it the
        column's name decides, 0 for pos0, start0, start and chromStart.
    percent
        Betas run from 0 to 100.
    build
        Human genome build of the coordinates; without it the position column's name may say it.
    genome_sizes
        Chromosome names and lengths of another genome, as chrom.sizes or .fai.

    Returns
    -------
    list of Problem
        The warnings and notes, which are printed too.

    Raises
    ------
    InputError
        The file cannot be read, or its content has errors.
    """
    validator = MethylationDataValidator(
        beta=beta,
        probe=probe,
        chrom=chrom,
        position=position,
        coverage=coverage,
        n_mod=n_mod,
        sample=sample,
        label=label,
        sequence=sequence,
        base0=base0,
        percent=percent,
        build=build,
        genome_sizes=genome_sizes,
    )
    # A sequence of the two bases NA must not be read as missing.
    frame = read_table(path, text=[sequence or "sequence", "seq"])
    validator.validate_methylation_data(frame, name=path)
    _print(validator.problems, validator.name, listed=("warning", "note"))
    stop_on_errors(validator.problems)
    return validator.problems


def check_probes(table: MethylationTable) -> list[Problem]:
    """Probe ids follow the grammar, and stand once (in each sample)."""
    if table.probes is None:
        return []
    ids = table.probes.astype("string").str.strip()
    ids = ids.mask(ids == "")
    missing = ids.isna().to_numpy()
    keys = pd.DataFrame({"probe": ids.to_numpy()})
    if table.sample is not None:
        keys["sample"] = table.frame[table.sample].to_numpy()
    numbers = keys.groupby([*keys], dropna=False, sort=False).ngroup().to_numpy()

    def first(row: int) -> str:
        return table.record(int(np.flatnonzero(numbers == numbers[row])[0]))

    problems = table.report(missing, lambda i: "the probe id is missing", "name the probe")
    problems += table.report(
        ~are_probe_ids(ids).to_numpy() & ~missing,
        lambda i: f"probe id {ids.iloc[i]!r} is malformed",
        "expected cg and 8 digits, ch.CHROMOSOME.POSITION and F or R, rs and digits, or nv-…, "
        "on EPICv2 with a suffix such as _TC21",
    )
    problems += table.report(
        keys.duplicated().to_numpy() & ~missing,
        lambda i: f"probe {ids.iloc[i]} stands in {first(i)} already",
        "keep one, or average them",
    )
    return problems


def check_label(table: MethylationTable) -> list[Problem]:
    """A label has two classes at least."""
    if table.label is None:
        return []
    labels = table.frame[table.label]
    problems = []
    classes = labels.dropna().unique()
    if len(classes) < 2:
        only = (
            f"one class only ({str(classes[0]).removesuffix('.0')})" if len(classes) else "no class"
        )
        what = f"column {table.label!r} has {only} in {len(labels):,} records"
        mend = "at least two classes are needed to learn or to measure anything"
        problems.append(table.problem(what, mend))
    if labels.isna().any():
        missing = int(labels.isna().sum())
        what = f"{missing:,} of {len(labels):,} records have no label in {table.label!r}"
        problems.append(table.problem(what, severity="warning"))
    return problems


def check_sequences(table: MethylationTable) -> list[Problem]:
    """Sequences are not empty and hold IUPAC nucleotide codes only."""
    if table.sequence is None:
        return []
    column = table.frame[table.sequence].astype("string").str.strip().fillna("")
    sequences = column.to_list()
    at = [first_forbidden(sequence) for sequence in sequences]
    problems = table.report(
        (column == "").to_numpy(bool), lambda i: "the sequence is empty", "fill it or drop the row"
    )
    return problems + table.report(
        np.array([place is not None for place in at]),
        lambda i: (
            f"{sequences[i][at[i] or 0]!r} at position {(at[i] or 0) + 1} of {table.sequence!r} "
            "is no nucleotide code"
        ),
        "use A, C, G, T, N or another IUPAC code",
    )


def _print(problems: list[Problem], name: str, *, listed: Collection[str] = SEVERITIES) -> None:
    counts = Counter(problem.severity for problem in problems)
    tally = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts.items())
    table = Table("severity", "record", "finding", title=Text(f"{name}: {tally or 'no findings'}"))
    for problem in problems:
        if problem.severity in listed:
            record = problem.where.removeprefix(name).strip()
            finding = f"{problem.what}; {problem.mend}" if problem.mend else problem.what
            severity = Text(problem.severity, style=_COLOURS[problem.severity])
            table.add_row(severity, Text(record), Text(finding))
    Console().print(table)
