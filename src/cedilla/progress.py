"""Progress bars, on standard error so that standard output stays a clean pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
T = TypeVar("T")


def progress_bar(*, transient: bool = False) -> Progress:
    """The one look that every bar of Cedilla has."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


def track(
    items: Iterable[T], description: str, *, total: int | None = None, transient: bool = False
) -> Iterator[T]:
    """Yield `items` under a progress bar."""
    with progress_bar(transient=transient) as bar:
        yield from bar.track(items, total=total, description=description)
