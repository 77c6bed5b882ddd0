"""Published results on GUE, and whether a result of one's own may stand beside them.

Which rows stand in ``published.csv``, and why
----------------------------------------------
Table 6 (appendix A.1) of the paper that introduced GUE, Zhou et al. 2023, arXiv:2306.15006
(version 2, ICLR 2024), and of it only whole rows of 28 tasks that pass two checks. The mean over
the 28 tasks, and over each group whose mean the paper prints as well, equals the printed one. The
cells that a mean cannot settle (which promoter set is which, misprints) agree between two
independent readings of the table, or were read by their column's heading. Five of its ten models
have passed so far.

The table of MCC on GUE by Lindsey et al. 2025, Bioinformatics 41(9), btaf456, as its authors'
analysis wrote it (leannmlindsey/DNATokenization_results_analysis): nine models, each retrained on
the same splits; the means over tasks equal those of the paper's Table 2. Their rates, and epochs or
batch sizes, are the best of a grid by the score that is printed, which flatters it. On
``virus/covid`` they give MCC, not the task's metric, and so no row.

Left out: results of other papers on other splits (random 70:30 splits of the GUE files) or by other
procedures (frozen embeddings with a random forest), results that name no table of a paper,
re-runs by third parties, means over groups of tasks, and models whose rows were read once only.

Values are × 100: MCC, and macro F1 × 100 for ``virus/covid``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import pandas as pd

from cedilla.tasks.catalogue import Task, find_task

Comparability = Literal["same protocol", "different split", "not comparable"]


def published(task: str | Task) -> pd.DataFrame:
    """The published results on `task`, best first; empty where there are none.

    Columns: task, model, metric (``mcc`` or ``f1``), value (× 100), value_0to1, paper,
    table, protocol (how the model was trained and chosen).
    """
    table = _table()
    rows = table[table["task"] == _as_task(task).name]
    return rows.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def comparability(
    task: str | Task, *, trained_on: str, rows_train: int | None = None
) -> Comparability:
    """Whether a result on the task's test split may be compared with the published ones.

    Parameters
    ----------
    trained_on
        The splits of the task that the model saw in training, joined by ``+``: ``train``, ``dev``,
        ``train+dev``; anything else, such as ``own``, stands for other data.
    rows_train
        How many records it was trained on; None for all records of the split, unchanged.

    Returns
    -------
    Comparability
        ``same protocol``: trained on all of the task's train split, and nothing else of it.
        ``different split``: trained on part of the train split, or on more than it.
        ``not comparable``: not trained on the train split at all, or also on the test split, or
        nothing is published on this task.
    """
    task = _as_task(task)
    seen = set(trained_on.split("+"))
    if published(task).empty or "train" not in seen or "test" in seen:
        return "not comparable"
    if seen == {"train"} and rows_train in (None, task.file("train").rows):
        return "same protocol"
    return "different split"


def _as_task(task: str | Task) -> Task:
    return task if isinstance(task, Task) else find_task(task)


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name("published.csv"))
