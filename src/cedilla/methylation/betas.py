"""Rules for measured values: betas, and the reads behind them."""

from __future__ import annotations

import numpy as np

from cedilla.errors import Problem, Severity
from cedilla.methylation.columns import MethylationTable, numbers, some_of

MUCH_MISSING = 0.2
MANY = 100  # values from which the shape of a distribution is worth a word


def check_betas(table: MethylationTable, *, percent: bool) -> list[Problem]:
    """Betas are numbers from 0 to 1 (to 100 with `percent`), or missing.

    Percent and M values are found as such, once, instead of in every record.
    """
    if not table.betas:
        return []
    columns = [numbers(table.frame[name]) for name in table.betas]
    values = np.column_stack([column for column, _ in columns])
    texts = np.column_stack([text for _, text in columns])

    def named(j: int) -> str:
        return f" in column {table.betas[j]!r}" if len(table.betas) > 1 else ""

    def written(i: int, j: int) -> str:
        return f"beta {str(table.frame[table.betas[j]].iloc[i])!r}{named(j)} is not a number"

    tops, problems = _scales(table, values, percent)
    infinite = np.isinf(values)
    # A column on a scale of its own has been reported as such; its top is NaN.
    outside = ~infinite & ~np.isnan(tops) & ((values < 0) | (values > tops))
    problems += table.report(
        texts, written, "use a decimal point, and leave the field empty or NA where not measured"
    )
    problems += table.report(
        infinite,
        lambda i, j: f"beta {values[i, j]}{named(j)} is infinite",
        "leave the field empty where not measured",
    )
    problems += table.report(
        outside,
        lambda i, j: f"beta {values[i, j]:g}{named(j)} is outside [0, {tops[j]:g}]",
        "percent values? pass --percent" if (tops == 1).all() else "correct it or leave it empty",
    )
    usable = np.where(infinite | outside | np.isnan(tops), np.nan, values / tops)
    return problems + _missing(table, np.isnan(values) & ~texts) + _modes(table, usable)


def check_coverage(table: MethylationTable) -> list[Problem]:
    """Coverage and modified reads are whole numbers, 0 <= n_mod <= coverage, and 0 has no beta."""
    problems: list[Problem] = []
    reads: dict[str, np.ndarray] = {}
    for name in filter(None, (table.coverage, table.n_mod)):
        reads[name], problems_here = _counts(table, name)
        problems += problems_here
    coverage = reads.get(table.coverage or "")
    n_mod = reads.get(table.n_mod or "")
    if coverage is not None and n_mod is not None:
        problems += table.report(
            (n_mod > coverage) & (coverage >= 0),
            lambda i: f"{n_mod[i]:g} modified reads of a coverage of {coverage[i]:g}",
            "are the columns swapped?",
        )
    if coverage is not None and table.betas:
        measured = ~np.isnan(numbers(table.frame[table.betas[0]])[0])
        problems += table.report(
            (coverage == 0) & measured,
            lambda i: f"beta {table.frame[table.betas[0]].iloc[i]} with a coverage of 0",
            "not measured is an empty beta, never 0",
        )
    return problems


def _counts(table: MethylationTable, name: str) -> tuple[np.ndarray, list[Problem]]:
    column = table.frame[name]
    values, texts = numbers(column)
    whole = np.isnan(values) | (np.floor(values) == values) & np.isfinite(values)
    problems = table.report(
        texts | ~whole | (values < 0),
        lambda i: f"{name} {str(column.iloc[i])!r} is not a number of reads",
        "give a whole number from 0, or leave it empty",
    )
    return values, problems


def _scales(
    table: MethylationTable, values: np.ndarray, percent: bool
) -> tuple[np.ndarray, list[Problem]]:
    """The greatest beta that each column (S,) of `values` may hold, NaN for M values."""
    measured = (~np.isnan(values)).sum(axis=0)
    like_m = (
        (measured >= 10)
        & ((values < -1).sum(axis=0) > 0.1 * measured)
        & ((values > 1).sum(axis=0) > 0.1 * measured)
    )
    tops = np.full(len(table.betas), 100.0 if percent else 1.0)
    problems = []
    if like_m.any():
        what = f"{_these(table, like_m)} like M values (log2 ratios)"
        problems.append(table.problem(what, "convert them: beta = 2^M / (2^M + 1)"))
    if percent:
        if measured.any() and np.nanmax(values) <= 1:
            what = "no beta is above 1 although --percent says that they run to 100"
            problems.append(table.problem(what, "drop --percent", "warning"))
    else:
        within = (values > 1) & (values <= 100)
        most = within.sum(axis=0) > 0.5 * (values > 0).sum(axis=0)
        highest = np.max(values, axis=0, initial=0, where=within)
        like_percent = most & (highest > 10) & ~like_m
        tops[like_percent] = 100
        if like_percent.any():
            what = f"{_these(table, like_percent)} like percent (up to {highest.max():g})"
            mend = "pass --percent" if like_percent.all() else "divide these columns by 100"
            problems.append(table.problem(what, mend))
    tops[like_m] = np.nan
    return tops, problems


def _these(table: MethylationTable, chosen: np.ndarray) -> str:
    if chosen.all():
        return "betas look"
    return f"{chosen.sum():,} of {len(chosen):,} beta columns ({_names(table, chosen)}) look"


def _names(table: MethylationTable, chosen: np.ndarray) -> str:
    return some_of([name for name, yes in zip(table.betas, chosen, strict=True) if yes], 5)


def _missing(table: MethylationTable, missing: np.ndarray) -> list[Problem]:
    share = missing.mean()
    what = f"{share:.1%} of the betas are missing ({missing.sum():,} of {missing.size:,})"
    if share == 1:
        return [table.problem("no beta is measured", "is this the right column? pass --beta")]
    problems = []
    if share > 0:
        severity: Severity = "warning" if share > MUCH_MISSING else "note"
        problems.append(table.problem(what, severity=severity))
    sparse = missing.mean(axis=0) > MUCH_MISSING
    if sparse.any() and len(table.betas) > 1:
        what = (
            f"{sparse.sum():,} of {len(sparse):,} columns miss more than {MUCH_MISSING:.0%} of "
            f"their betas: {_names(table, sparse)}"
        )
        problems.append(table.problem(what, severity="warning"))
    return problems


def _modes(table: MethylationTable, betas: np.ndarray) -> list[Problem]:
    betas = betas[~np.isnan(betas)]
    if len(betas) < MANY:
        return []
    low, high = (betas < 0.2).mean(), (betas > 0.8).mean()
    middle = ((betas >= 0.4) & (betas <= 0.6)).mean()
    verdict = "bimodal" if min(low, high) > middle else "not bimodal"
    what = (
        f"betas are {verdict}: {low:.0%} below .2, {middle:.0%} from .4 to .6, {high:.0%} above .8"
    )
    mend = (
        "" if verdict == "bimodal" else "usual for chosen probes or averages; else, are they betas?"
    )
    return [table.problem(what, mend, "note")]
