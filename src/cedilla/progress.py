"""Progress bars, on standard error so that standard output stays a clean pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)
T = TypeVar("T")


class RateColumn(ProgressColumn):
    """How many units pass in a second, such as ``12,345 tokens/s``."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The rate of late; at the end, over all."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f} {self._unit}/s")


def progress_bar(*, transient: bool = False, unit: str = "") -> Progress:
    """The one look that every bar of Cedilla has; with a `unit`, how many pass in a second."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([RateColumn(unit)] if unit else []),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        # Without a terminal, a bar that vanishes leaves an empty line.
        disable=transient and not console.is_terminal,
    )


def track(
    items: Iterable[T], description: str, *, total: int | None = None, transient: bool = False
) -> Iterator[T]:
    """Yield `items` under a progress bar."""
    with progress_bar(transient=transient) as bar:
        yield from bar.track(items, total=total, description=description)
