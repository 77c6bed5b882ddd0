"""Rules for coordinates: chromosomes that exist, named one way, and positions upon them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cedilla.errors import InputError, Problem, stop_on_errors
from cedilla.methylation.columns import Build, MethylationTable, numbers

_CHROMOSOMES = [*map(str, range(1, 23)), "X", "Y", "M"]
# Lengths in bp, from UCSC's table chromInfo of each build. GRCh37's own MT (16,569 bp) is not
# hg19's chrM.
_LENGTHS: dict[Build, str] = {
    "hg18": (
        "247249719 242951149 199501827 191273063 180857866 170899992 158821424 146274826 "
        "140273252 135374737 134452384 132349534 114142980 106368585 100338915 88827254 "
        "78774742 76117153 63811651 62435964 46944323 49691432 154913754 57772954 16571"
    ),
    "hg19": (
        "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 "
        "141213431 135534747 135006516 133851895 115169878 107349540 102531392 90354753 "
        "81195210 78077248 59128983 63025520 48129895 51304566 155270560 59373566 16571"
    ),
    "hg38": (
        "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 "
        "138394717 133797422 135086622 133275309 114364328 107043718 101991189 90338345 "
        "83257441 80373285 58617616 64444167 46709983 50818468 156040895 57227415 16569"
    ),
}
CHROMOSOME_LENGTHS: dict[Build, dict[str, int]] = {
    build: dict(zip(_CHROMOSOMES, map(int, lengths.split()), strict=True))
    for build, lengths in _LENGTHS.items()
}


def read_genome_sizes(path: Path) -> dict[str, int]:
    """Chromosome lengths by bare name (without ``chr``) from ``chrom.sizes`` or ``.fai``."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError.one(path, "cannot be read as text", "check the path") from None
    sizes, problems = {}, []
    for number, line in enumerate(lines, start=1):
        name, length, *_ = [*line.split(), "", ""]
        if length.isdecimal():
            sizes[bare_names(pd.Series([name])).iloc[0]] = int(length)
        elif line.strip():
            what, mend = "is not a name and a length", "give chrom.sizes or .fai"
            problems.append(Problem(where=f"{path} line {number}", what=what, mend=mend))
    stop_on_errors(problems[:5])
    if not sizes:
        raise InputError.one(path, "holds no chromosome", "give chrom.sizes or .fai")
    return sizes


def bare_names(names: pd.Series) -> pd.Series:
    """Chromosome names without ``chr``, the mitochondrion as M."""
    return names.str.replace(r"^chr", "", case=False, regex=True).replace("MT", "M")


def check_coordinates(
    table: MethylationTable, sizes: Mapping[str, int] | None = None
) -> list[Problem]:
    """Positions lie on their chromosome, and chromosomes are named one way.

    `sizes` are lengths by bare name. Without them and without a build, a position is wrong if it
    lies beyond the chromosome in every human build.
    """
    genome = _genome(table.build, sizes)
    problems = []
    written = _written_names(table)
    if written is not None:
        problems += _check_names(table, written, genome)
    if table.position is not None:
        problems += _check_positions(table, table.position)
        if written is not None:
            problems += _check_lengths(table, table.position, written, genome)
            if table.build is None and sizes is None:
                what = "no build is known: positions were held against the longest of three"
                problems.append(table.problem(what, "pass --build hg19 or another", "note"))
    return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class _Genome:
    name: str
    sizes: Mapping[str, int]


def _genome(build: Build | None, sizes: Mapping[str, int] | None) -> _Genome:
    if sizes is not None:
        return _Genome(name="the genome given", sizes=sizes)
    if build is not None:
        return _Genome(name=build, sizes=CHROMOSOME_LENGTHS[build])
    longest = {c: max(of[c] for of in CHROMOSOME_LENGTHS.values()) for c in _CHROMOSOMES}
    return _Genome(name="hg18, hg19 or hg38", sizes=longest)


def _written_names(table: MethylationTable) -> pd.Series | None:
    if table.chrom is None:
        return None
    # A column of 1, 2 and a gap was read as 1.0 and 2.0.
    names = table.frame[table.chrom].astype("string").str.strip()
    names = names.str.replace(r"\.0$", "", regex=True)
    return names.mask(names == "")


def _check_names(table: MethylationTable, written: pd.Series, genome: _Genome) -> list[Problem]:
    problems = []
    known = bare_names(written).isin(list(genome.sizes))
    problems += _check_style(table, written.where(known))
    if missing := int(written.isna().sum()):
        what = f"{missing:,} of {len(written):,} records have no chromosome"
        problems.append(table.problem(what, severity="warning"))
    unknown = written[~known & written.notna()].value_counts()
    if len(unknown):
        shown = ", ".join(f"{name} ({n:,})" for name, n in unknown.head(5).items())
        what = (
            f"{unknown.sum():,} of {len(written):,} records are on chromosomes unknown to "
            f"{genome.name}, so their positions were not held against a length: "
            f"{shown}{', …' if len(unknown) > 5 else ''}"
        )
        problems.append(table.problem(what, "another genome? pass --genome-sizes", "warning"))
    return problems


def _check_style(table: MethylationTable, written: pd.Series) -> list[Problem]:
    prefix = (
        written.str.extract(r"^(chr)?", flags=re.IGNORECASE)[0].fillna("").where(written.notna())
    )
    styles = prefix.value_counts()
    if len(styles) < 2:
        return []
    rare = (prefix == styles.index[-1]).fillna(False).to_numpy(bool)
    first = int(np.flatnonzero(rare)[0])
    kinds = ", ".join(
        f"{n:,} {f'with {style!r}' if style else 'without chr'}" for style, n in styles.items()
    )
    return [
        Problem(
            where=f"{table.path} {table.record(first)}",
            what=f"chromosome {written.iloc[first]!r}: names are mixed ({kinds})",
            mend="name all chromosomes one way",
        )
    ]


def _check_positions(table: MethylationTable, name: str) -> list[Problem]:
    column, base = table.frame[name], table.base
    values, texts = numbers(column)
    odd = texts | ~np.isnan(values) & (np.floor(values) != values) | np.isinf(values)
    problems = table.report(
        odd, lambda i: f"position {str(column.iloc[i])!r} is not a whole number", "correct it"
    )
    hint = "; is the first base 0? pass --base0" if base and (values == 0).any() else ""
    problems += table.report(
        ~odd & (values < base),
        lambda i: f"position {values[i]:.0f} in {name!r}, which is {base}-based",
        f"leave it empty where unknown{hint}",
    )
    missing = int(np.isnan(values).sum() - texts.sum())
    if missing:
        what = f"{missing:,} of {len(values):,} records have no position"
        problems.append(table.problem(what, severity="warning"))
    return problems


def _check_lengths(
    table: MethylationTable, name: str, written: pd.Series, genome: _Genome
) -> list[Problem]:
    values, _ = numbers(table.frame[name])
    lengths = bare_names(written).map(dict(genome.sizes)).to_numpy(np.float64, na_value=np.nan)
    problems = table.report(
        np.isfinite(values) & (values > lengths - 1 + table.base),
        lambda i: (
            f"position {values[i]:.0f} lies beyond the end of chromosome {written.iloc[i]} "
            f"({lengths[i]:.0f} bp in {genome.name})"
        ),
        "another build? pass --build, or --genome-sizes for another genome",
    )
    codes, names = pd.factorize(written)
    turns = np.diff(codes) != 0
    descends = ~turns & (np.diff(values) < 0)
    if descends.any() or turns.sum() >= len(names) > 0:
        what = "records are not sorted by chromosome and position"
        problems.append(table.problem(what, severity="note"))
    return problems
