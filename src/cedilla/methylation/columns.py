"""Which column of a methylation table holds what: as the user says, else by the usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cedilla.dna.tables import listed
from cedilla.errors import Problem, Severity
from cedilla.methylation.probes import are_probe_ids, look_like_probes

Build = Literal["hg18", "hg19", "hg38"]

# Names in lower case, without spaces, dots, hyphens and underscores; the likelier first.
USUAL_NAMES = {
    "beta": (
        "beta betavalue betavalues avgbeta averagebeta meanbeta medianbeta methylation "
        "methylationlevel methylationvalue methlevel fractionmethylated fracmethylated "
        "fractionmodified percentmethylated percentmethylation methylationpercent "
        "methylationpercentage percentmodified freqc"
    ),
    "probe": (
        "probeid probe probename ilmnid illuminaid idref cpgid cgid targetid compositeelementref"
    ),
    "chrom": "chrom chr chromosome seqnames seqname contig cpgchrm",
    "position": (
        "pos0 start0 pos1 start1 position pos mapinfo start chromstart base coordinate bp "
        "cpgcoordinate"
    ),
    "coverage": "coverage cov depth totalreads nreads validcoverage nvalidcov totalcoverage",
    "n_mod": "nmod nmodified nmeth nmethylated methylatedreads countmethylated numcs modcount",
    "sample": "sample sampleid samplename",
    "label": "label",
    "sequence": "sequence seq",
}
_ZERO_BASED = {"pos0", "start0", "start", "chromstart"}
_SUFFIX = re.compile(r"[_. -]?(hg18|hg19|hg38|grch36|grch37|grch38)(?:[_. -]?([01])based)?$", re.I)
_BUILDS: dict[str, Build] = {
    **{"hg18": "hg18", "hg19": "hg19", "hg38": "hg38"},
    **{"grch36": "hg18", "grch37": "hg19", "grch38": "hg38"},
}
_BETA_OF = re.compile(r"^(avg[_. -]?)?beta[_. -]|[_. -](avg[_. -]?)?beta$", re.I)


@dataclass(slots=True, kw_only=True)
class Description:
    """What the user says about a table, as :func:`cedilla.methylation.check.check` explains it.

    A column that is None is found by its name.
    """

    beta: str | None = None
    probe: str | None = None
    chrom: str | None = None
    position: str | None = None
    coverage: str | None = None
    n_mod: str | None = None
    sample: str | None = None
    label: str | None = None
    sequence: str | None = None
    base0: bool | None = None
    percent: bool = False
    build: Build | None = None
    genome_sizes: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethylationTable:
    """A table and the part that each of its columns plays; None where there is no such column.

    betas: the beta columns, several for a matrix of probes by samples.
    probes: the probe ids, from a column or from the index.
    base: 0 or 1, what the first base of a chromosome is called.
    build: as asked for, or as the position column is named.
    """

    frame: pd.DataFrame
    path: Path
    betas: list[str]
    probes: pd.Series | None
    position: str | None
    base: int
    build: Build | None
    chrom: str | None
    coverage: str | None
    n_mod: str | None
    sample: str | None
    label: str | None
    sequence: str | None

    def report(self, wrong: np.ndarray, what: Callable[..., str], mend: str) -> list[Problem]:
        """Problems where `wrong` (n,) or (n, S) is true: the first few, and how many more.

        what: from the 0-based row (and column) to the fact.
        """
        at = np.argwhere(wrong)
        records = [self.record(row) for row in at[:, 0]]
        return listed(self.path, records, lambda k: what(*map(int, at[k])), mend)

    def record(self, row: int) -> str:
        """A row's name for the reader, such as ``line 812``."""
        return f"{self.frame.attrs.get('record', 'row')} {self.frame.index[row]}"

    def problem(self, what: str, mend: str = "", severity: Severity = "error") -> Problem:
        """A problem of the table as a whole."""
        return Problem(where=str(self.path), what=what, mend=mend, severity=severity)


def recognise(
    frame: pd.DataFrame, said: Description, path: Path
) -> tuple[MethylationTable, list[Problem]]:
    """Find the columns of `frame`; the problems are columns that are missing or stand twice."""
    names = [str(name) for name in frame.columns]
    frame = frame.set_axis(names, axis=1)
    problems = _missing_columns(names, said, path)
    frame = frame.loc[:, ~frame.columns.duplicated()]

    position, base, build = _find_position(names, said)
    found = {
        kind: _find(names, kind, getattr(said, kind), build)[0]
        for kind in ("probe", "chrom", "coverage", "n_mod", "sample", "label", "sequence")
    }
    probes = _find_probes(frame, found.pop("probe"))
    taken = {position, *found.values()} | ({probes.name} if probes is not None else set())
    free = [name for name in frame.columns if name not in taken]
    betas = _named_betas(free, names, said.beta)
    if not betas and said.beta is None:
        betas = _matrix_betas(frame[free], has_probes=probes is not None)
        problems += _unread_numbers(frame[free], betas, path)
    table = MethylationTable(
        frame=frame,
        path=path,
        betas=betas,
        probes=probes,
        position=position,
        base=base,
        build=build,
        **found,
    )
    if not betas and said.beta is None:
        problems.append(_no_beta(table))
    return table, problems


def numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The column as float64 (n,), and where (n,) it holds something that is no number."""
    if column.dtype == object:
        column = column.where(column.isna(), column.astype(str))
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    texts = np.isnan(values) & column.notna().to_numpy()
    if texts.any():
        texts[texts] = column[texts].astype(str).str.strip() != ""
    return values, texts


def some_of(names: Collection[str], n: int) -> str:
    """The first `n` names, and how many there are if there are more."""
    shown = ", ".join(list(names)[:n])
    return shown + (f", … ({len(names):,} in all)" if len(names) > n else "")


def describe(table: MethylationTable) -> Problem:
    """A note of how the columns were read, so that nothing is guessed in silence."""
    kinds = ("chrom", "coverage", "n_mod", "sample", "label", "sequence")
    parts = {kind: name for kind in kinds if (name := getattr(table, kind))}
    if table.betas:
        parts["beta"] = some_of(table.betas, 3)
    if table.probes is not None:
        parts["probe"] = str(table.probes.name or "the index")
    if table.position:
        build = f", {table.build}" if table.build else ""
        parts["position"] = f"{table.position} ({table.base}-based{build})"
    used = {table.position, *table.betas, *parts.values()}
    unread = [name for name in table.frame.columns if name not in used]
    what = f"{len(table.frame):,} record{'s' * (len(table.frame) != 1)}, read as " + ", ".join(
        f"{kind}: {parts[kind]}" for kind in USUAL_NAMES if kind in parts
    )
    return table.problem(
        what + (f"; not looked at: {some_of(unread, 8)}" if unread else ""), severity="note"
    )


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _missing_columns(names: list[str], said: Description, path: Path) -> list[Problem]:
    problems = [
        Problem(where=str(path), what=f"column {name!r} stands twice", mend="rename one")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    wanted = [getattr(said, kind) for kind in USUAL_NAMES if kind != "beta"]
    for name in [*_said_betas(said.beta, names), *wanted]:
        if name is None or name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        what = f"has no column {name!r}"
        mend = f"{hint}its columns: {some_of(names, 12)}"
        problems.append(Problem(where=str(path), what=what, mend=mend))
    return problems


def _find(
    names: list[str], kind: str, said: str | None, build: Build | None
) -> tuple[str | None, re.Match[str] | None]:
    """The column of a kind, and the build that its name ends in, if it does."""
    if said is not None:
        return (said if said in names else None), _SUFFIX.search(said)
    found: dict[Build | None, str] = {}
    for usual in USUAL_NAMES[kind].split():
        for name in names:
            suffix = _SUFFIX.search(name)
            if _folded(_SUFFIX.sub("", name)) == usual:
                found.setdefault(_BUILDS[suffix[1].casefold()] if suffix else None, name)
    order = [build, None] if build else [None, *found]
    best = next((found[b] for b in order if b in found), None)
    return best, _SUFFIX.search(best or "")


def _find_position(names: list[str], said: Description) -> tuple[str | None, int, Build | None]:
    name, suffix = _find(names, "position", said.position, said.build)
    base = 0 if _folded(_SUFFIX.sub("", name or "")) in _ZERO_BASED else 1
    if suffix and suffix[2]:
        base = int(suffix[2])
    if said.base0 is not None:
        base = 0 if said.base0 else 1
    return name, base, said.build or (_BUILDS[suffix[1].casefold()] if suffix else None)


def _find_probes(frame: pd.DataFrame, name: str | None) -> pd.Series | None:
    if name is not None:
        return frame[name]
    for column in frame.columns:
        if frame[column].dtype.kind in "OT" and look_like_probes(frame[column]):
            return frame[column]
    index = frame.index.to_series()
    return index if look_like_probes(index) else None


def _said_betas(said: str | None, names: list[str]) -> list[str]:
    # A column's own name may hold a comma.
    return [] if said is None else [said] if said in names else said.split(",")


def _named_betas(free: list[str], names: list[str], said: str | None) -> list[str]:
    if said is not None:
        return [name for name in _said_betas(said, names) if name in names]
    for usual in USUAL_NAMES["beta"].split():
        for name in free:
            if _folded(name) == usual:
                return [name]
    return [name for name in free if _BETA_OF.search(name)]


def _matrix_betas(frame: pd.DataFrame, *, has_probes: bool) -> list[str]:
    """The beta columns of a matrix of samples by probes, or of probes by samples."""
    names = frame.columns.to_series()
    if look_like_probes(names):
        return list(names[are_probe_ids(names)])
    betas = (_between(frame, 1) or _between(frame, 100)) if has_probes else []
    # One column of fractions may hold anything, p values for one; the user has to name it.
    return betas if len(betas) > 1 else []


def _unread_numbers(frame: pd.DataFrame, betas: list[str], path: Path) -> list[Problem]:
    others = [c for c in frame.select_dtypes("number").columns if c not in betas]
    if not betas or not others:
        return []
    what = f"columns of other numbers than betas were passed over: {some_of(others, 8)}"
    mend = "name the betas with --beta if these are some"
    return [Problem(where=str(path), what=what, mend=mend, severity="warning")]


def _between(frame: pd.DataFrame, top: float) -> list[str]:
    """The columns of which nearly all numbers lie between 0 and `top`, and not all are whole."""
    chosen = []
    for name in frame.columns:
        values, texts = numbers(frame[name])
        values = values[~np.isnan(values)]
        inside = values[(values >= 0) & (values <= top)]
        enough = len(inside) > 0.9 * (len(values) + texts.sum())
        if enough and frame[name].dtype != bool and (inside % 1 != 0).any():
            chosen.append(name)
    return chosen


def _no_beta(table: MethylationTable) -> Problem:
    names = list(table.frame.columns)
    known = USUAL_NAMES["beta"].split()
    likeness = {
        name: max(difflib.SequenceMatcher(None, _folded(name), usual).ratio() for usual in known)
        for name in names[:1000]
    }
    best = max(likeness, key=lambda name: likeness[name], default="")
    near = best if likeness.get(best, 0) > 0.6 else ""
    what = f"has no beta column; its columns: {some_of(names, 12)}"
    mend = f"did you mean {near!r}? pass --beta {near}" if near else "name it with --beta"
    return table.problem(what, mend)
