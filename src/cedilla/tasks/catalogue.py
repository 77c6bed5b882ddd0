"""The catalogue of tasks: every file with its rows, its hash and its public source.

``catalogue.csv`` has one row a file. Its sources:

- The 28 tasks of GUE, the Genome Understanding Evaluation (Zhou et al. 2023, arXiv:2306.15006),
  from the copy in github.com/wds-seu/DeepGene, pinned to one commit whose tree gives the git blob
  SHA-1 of all 84 files. A SHA-256 and a length stand beside it where the content itself was seen.
- ``methylation/hm27_gm12878``: the 27k array joined with population betas and GM12878 peaks. It
  has no address, because it is a join of several sources; `Source.origin` says of which.
"""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

from cedilla.errors import InputError

Metric = Literal["mcc", "f1", "auroc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where files come from, under which licence, and what to cite for them."""

    origin: str
    licence: str
    citation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of a task.

    split: ``train``, ``dev``, ``test``, or ``all`` for a table that the user splits.
    path: below a data folder, with ``/``; a gzipped file of that name with ``.gz`` serves as well.
    rows: records, without the header.
    bytes: length of the unpacked content, where it was seen.
    git_blob_sha1, sha256: hashes of the unpacked content; one of them at least is known.
    url: the public address, None for a table that has none.
    """

    task: str
    split: str
    path: str
    rows: int
    bytes: int | None
    git_blob_sha1: str | None
    sha256: str | None
    url: str | None

    @property
    def checksum(self) -> tuple[str, str]:
        """The stronger of the known hashes, as its kind and its hexadecimal digits."""
        if self.sha256:
            return "sha256", self.sha256
        assert self.git_blob_sha1, f"{self.path} has no hash in the catalogue"
        return "git blob sha1", self.git_blob_sha1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the tasks of one kind share.

    cpg_methylation: whether the organism methylates CpG. Where it does not, as in yeast, no gain
        can be explained by methylation.
    length: bp of nearly all of the sequences.
    scope: what its rows are, in a few words that a verdict can end with.
    limits: what results on these data cannot speak for, as sentences.
    metric: by which published results are given; ``f1`` is the macro F1 over the classes.
    """

    about: str
    organism: str
    cpg_methylation: bool
    classes: int
    length: int
    metric: Metric
    source: Source
    scope: str = ""
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Family):
    """A benchmark task: its facts and its files.

    aliases: shorter names that `find_task` takes too.
    """

    name: str
    aliases: tuple[str, ...]
    files: tuple[DataFile, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in order."""
        return tuple(file.split for file in self.files)

    def file(self, split: str) -> DataFile:
        """The file of a split. Raises :class:`InputError` where the task has no such split."""
        for file in self.files:
            if file.split == split:
                return file
        raise InputError.one(
            f"task {self.name}", f"has no split {split!r}", f"it has {', '.join(self.splits)}"
        )


GUE = Source(
    origin="github.com/wds-seu/DeepGene at 486343e5212361d6cd7ed03c624f430ed3d5f02e, a copy of "
    "the Genome Understanding Evaluation of github.com/MAGICS-LAB/DNABERT_2",
    licence="Apache-2.0",
    citation="Zhou et al. 2023, arXiv:2306.15006",
)
HM27 = Source(
    origin="a join of probe sequences and positions "
    "(hansenlab/IlluminaHumanMethylation27kanno.ilmn12.hg19@1549356, Artistic-2.0), population "
    "betas (eliopato/pylluminator-data@ec1ac83; biolearn 0.9.1, BSD) and GM12878 peaks (ENCODE, by "
    "way of harel-coffee/svMIL-auto@35e8056, MIT)",
    licence="that of each source",
    citation="Illumina HumanMethylation27; The ENCODE Project Consortium 2012, Nature 489:57",
)

# By the beginning of the task's name.
FAMILIES = {
    "EMP/": Family(
        about="histone marks of yeast",
        organism="yeast",
        cpg_methylation=False,
        classes=2,
        length=500,
        metric="mcc",
        source=GUE,
    ),
    "prom/prom_300": Family(
        about="promoters",
        organism="human",
        cpg_methylation=True,
        classes=2,
        length=300,
        metric="mcc",
        source=GUE,
    ),
    "prom/prom_core": Family(
        about="core promoters",
        organism="human",
        cpg_methylation=True,
        classes=2,
        length=70,
        metric="mcc",
        source=GUE,
    ),
    "tf/": Family(
        about="transcription factor binding",
        organism="human",
        cpg_methylation=True,
        classes=2,
        length=101,
        metric="mcc",
        source=GUE,
    ),
    "mouse/": Family(
        about="transcription factor binding",
        organism="mouse",
        cpg_methylation=True,
        classes=2,
        length=101,
        metric="mcc",
        source=GUE,
    ),
    "splice/": Family(
        about="splice sites",
        organism="human",
        cpg_methylation=True,
        classes=3,
        length=400,
        metric="mcc",
        source=GUE,
    ),
    "virus/": Family(
        about="variants of the virus",
        organism="SARS-CoV-2",
        cpg_methylation=False,
        classes=9,
        length=999,
        metric="f1",
        source=GUE,
    ),
    "methylation/": Family(
        about="array CpGs with betas and GM12878 peaks",
        organism="human",
        cpg_methylation=True,
        classes=2,
        length=122,
        metric="auroc",
        source=HM27,
        scope="promoter-proximal probes with population betas",
        limits=(
            "The 27k array's probes lie within 1.5 kb of a transcription start: nothing here "
            "speaks for the rest of the genome.",
            "The betas are population values, not GM12878's own: a gain is one of methylation "
            "that tissues share.",
        ),
    ),
}
_SHORT = {"splice/reconstructed": "splice", "methylation/hm27_gm12878": "hm27"}


@cache
def tasks() -> tuple[Task, ...]:
    """All tasks, in the catalogue's order."""
    with open(Path(__file__).with_name("catalogue.csv"), encoding="utf-8", newline="") as table:
        files = [_data_file(row) for row in csv.DictReader(table)]
    names = dict.fromkeys(file.task for file in files)
    return tuple(_task(name, tuple(f for f in files if f.task == name)) for name in names)


def find_task(name: str) -> Task:
    """The task of that name or alias; case and a leading ``gue/`` do not matter.

    Raises :class:`InputError`, with the nearest names, where there is none.
    """
    known = {key.lower(): task for task in tasks() for key in (task.name, *task.aliases)}
    wanted = name.strip().strip("/").lower().removeprefix("gue/")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    nearest = list(dict.fromkeys(known[key].name for key in near))
    raise InputError.one(
        f"task {name!r}",
        "is not in the catalogue",
        (f"did you mean {' or '.join(nearest)}? " if nearest else "")
        + "`cedilla data list` prints all names",
    )


def find_by_hash(sha256: str) -> Task | None:
    """The task that a file of that SHA-256 belongs to, if any."""
    return next((task for task in tasks() if any(f.sha256 == sha256 for f in task.files)), None)


def _data_file(row: dict[str, str]) -> DataFile:
    return DataFile(
        task=row["task"],
        split=row["split"],
        path=row["path"],
        rows=int(row["rows"]),
        bytes=int(row["bytes"]) if row["bytes"] else None,
        git_blob_sha1=row["git_blob_sha1"] or None,
        sha256=row["sha256"] or None,
        url=row["url"] or None,
    )


def _task(name: str, files: tuple[DataFile, ...]) -> Task:
    family = next(facts for start, facts in FAMILIES.items() if name.startswith(start))
    facts = {field.name: getattr(family, field.name) for field in fields(Family)}
    return Task(name=name, aliases=_aliases(name), files=files, **facts)


def _aliases(name: str) -> tuple[str, ...]:
    family, last = name.split("/")
    aliases = (f"{family}{last}" if last.isdigit() else last,)
    return (*aliases, _SHORT[name]) if name in _SHORT else aliases
