"""The main job in short form, from data to a report, offline on two CPU cores."""

from __future__ import annotations

from pathlib import Path

from cedilla.config import load_packaged, run
from cedilla.progress import console
from cedilla.report.report import report
from cedilla.run_directory import Run

EXPERIMENTS = ("guide", "methylation_h3k4me3", "gue")
COST = "about 6 minutes on two cores, 2 GB of memory"


def demo(
    *,
    out: Path = Path("runs/demo"),
    data_dir: Path | None = None,
    resume: bool = True,
    dry_run: bool = False,
) -> Path:
    """Run the three experiments in short form and write one report, in minutes.

    The guide's experiment on synthetic methylation, the real one on H3K4me3, and two GUE tasks
    beside published results: one seed and fewer rows than in the full form, `cedilla run guide`
    and so on. What its data cannot be found for is left out, and the report says how to get it.
    An interrupted demo goes on where it stopped.

    Parameters
    ----------
    out:
        The run directory.
    data_dir:
        The first folder in which to look for data.
    resume:
        Go on with an interrupted demo in `out`.
    dry_run:
        Print the commands that it stands for, with time and memory, and stop.

    Examples
    --------
    cedilla demo --out runs/demo
    """
    if dry_run:
        for name in EXPERIMENTS:
            run(load_packaged(name), out=out / name, short=True, dry_run=True)
        console.print(COST)
        return out
    title = "Cedilla's main job, in short form"
    about = (
        "Three experiments with one seed, fewer rows and less training than their full form: "
        + ", ".join(f"cedilla run {name}" for name in EXPERIMENTS)
        + "."
    )
    whole = Run.start(out, verb="run", config={"title": title, "about": about}, resume=resume)
    whole.note(title=title, about=about, short=True)
    for name in EXPERIMENTS:
        console.rule(name)
        run(
            load_packaged(name), out=whole.path / name, resume=resume, short=True, data_dir=data_dir
        )
    console.rule("report")
    return report((whole.path,))
