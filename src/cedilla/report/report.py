"""``cedilla report``: figures, and one self-contained HTML page, from run directories."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cedilla.errors import InputError
from cedilla.files import whole_file, write_text
from cedilla.report.benchmark_section import Standing, benchmark_sections, headline, standings
from cedilla.report.finetune_section import finetune_sections, score_sentence
from cedilla.report.look import Look
from cedilla.report.methylation_section import methylation_sections
from cedilla.report.page import Finding, Page, Section
from cedilla.report.provenance import other_sections, provenance_sections
from cedilla.report.results import Gathered, Result, gather
from cedilla.report.wording import listed
from cedilla.version import __version__

SHORT = "Short form: fewer rows, seeds or epochs than the full experiment."


def report(runs: tuple[Path, ...], *, out: Path | None = None, title: str | None = None) -> Path:
    """Draw the figures of finished runs and write one HTML page about them.

    The page needs nothing beside itself: no network, no script. It reads on a phone, in the dark
    and on paper. Everything in it is computed from the run directories, so it can be made again
    after they were moved or copied from a cluster.

    Parameters
    ----------
    runs:
        Run directories, or directories that hold several, such as the one `cedilla run` makes.
        A run inside another finished run is a part of it and has no entry of its own.
    out:
        Directory for ``report.html`` and ``plots/``. By default the first of `runs`.
    title:
        The page's title. By default the one that the runs' common directory noted.

    Returns
    -------
    Path
        The page, ``report.html``. Its path is also printed. Beside it, in ``plots/``, lie the
        figures as PNG: ``training_history.png``, ``ranking_curves.png``, ``gue_benchmark.png`` and
        ``methylation.png``, those that the runs give, and numbered ones where one does not do.

    Raises
    ------
    InputError
        When a directory is absent or holds no finished run, or a file in it cannot be read.

    Examples
    --------
    cedilla report runs/h3k4me3
    cedilla report runs/mini runs/cnn runs/kmer --out compared --title "Three models"
    """
    if not runs:
        raise InputError.one("report", "no run directory was given", "name one or more")
    gathered = gather([Path(run) for run in runs])
    out = Path(out or runs[0])
    page = _page(gathered, title or _title(gathered))
    for picture in page.pictures:
        with whole_file(out / "plots" / f"{picture.name}.png") as draft:
            draft.write_bytes(picture.images[Look()])
    write_text(out / "report.html", page.html())
    print(out / "report.html")
    return out / "report.html"


def _title(gathered: Gathered) -> str:
    titles = _noted(gathered.parents, "title")
    if titles:
        return titles[0]
    return f"Report on {listed([result.name for result in gathered.results[:3]])}"


def _page(gathered: Gathered, title: str) -> Page:
    finetuned, compared = gathered.of("finetune"), gathered.of("compare")
    others = [r for r in gathered.results if r.verb not in ("finetune", "compare")]
    places = standings(finetuned)
    sections: list[Section] = [
        *methylation_sections(compared),
        *benchmark_sections(places),
        *finetune_sections(finetuned),
        *other_sections(others),
        *provenance_sections(gathered.results, gathered.parents),
    ]
    return Page(
        title=title,
        about=_noted(gathered.parents, "about"),
        made=_made(gathered.results),
        findings=_findings(compared, places, finetuned),
        notices=[SHORT] if _noted(gathered.parents, "short") else [],
        left_out=_left_out(gathered),
        sections=sections,
    )


def _made(results: Sequence[Result]) -> str:
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    verbs = [
        f"{sum(r.verb == verb for r in results)} {verb}"
        for verb in dict.fromkeys(r.verb for r in results)
    ]
    runs = "run" if len(results) == 1 else "runs"
    return f"Cedilla {__version__} · {today} · {listed(verbs)} {runs}"


def _findings(
    compared: Sequence[Result], places: Sequence[Standing], finetuned: Sequence[Result]
) -> list[Finding]:
    """The headlines: what methylation adds, the published comparison, what is simulated."""
    own = [result for result in finetuned if not result.metrics.get("task")]
    fair_first = sorted(places, key=lambda place: not place.ours.comparable)
    texts = {
        "Methylation": [_verdict(result) for result in compared if not result.synthetic],
        "Benchmark": [headline(place) for place in fair_first][:2],
        "Fine-tuned": [score_sentence(result) for result in own if not result.synthetic][:2],
        "Synthetic: no evidence about biology": [
            *[score_sentence(result) for result in own if result.synthetic][:2],
            *[_verdict(result) for result in compared if result.synthetic],
        ],
    }
    return [
        Finding(tag=tag, texts=list(filter(None, some))) for tag, some in texts.items() if any(some)
    ]


def _verdict(result: Result) -> str:
    return str((result.metrics.get("verdict") or {}).get("sentence", ""))


def _noted(parents: Sequence[Result], key: str) -> list[str]:
    """What the parent directories noted under `key`, one value or a list of values each."""
    values = [p.run.manifest[key] for p in parents if p.run.manifest.get(key)]
    return [str(x) for value in values for x in (value if isinstance(value, list) else [value])]


def _left_out(gathered: Gathered) -> list[str]:
    unfinished = [
        f"{name} did not finish; run it again with --resume." for name in gathered.unfinished
    ]
    return _noted(gathered.parents, "left_out") + unfinished
