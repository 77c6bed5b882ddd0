"""What embedding an input would take: measured on a few of its tiles, on this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from cedilla.errors import InputError
from cedilla.inference.layout import Layout
from cedilla.inference.survey import Survey
from cedilla.inference.tiles import Tile
from cedilla.inference.windows import Reader, batches, work

# A full batch is measured only where it takes no longer than this, in seconds.
PATIENCE = 10.0


def estimate(reader: Reader, window: Sequence[Tile], found: Survey, layout: Layout) -> str:
    """Counts, time, memory and size of the result, in words.

    `window` are the input's first tiles: some of them are read, and no row is kept.
    """
    rate = _tokens_per_second(reader, window)
    seconds = found.work / rate
    size = layout.rows * layout.row_bytes
    # The rows of a window, as tiles and once more as a table; a record, raw and clean.
    rows = layout.rows * sum(map(work, window)) / found.work * layout.row_bytes
    memory = peak_memory() + 2 * rows + 2 * found.longest
    return (
        f"sequences: {found.records:,}; bases: {found.bases:,}; tokens: {found.tokens:,}; "
        f"tiles: {found.tiles:,}; time: about {duration_text(seconds)} at {rate:,.0f} tokens/s; "
        f"memory: {size_text(memory)}; rows of the result: {layout.rows:,}; "
        f"its size: {size_text(size)}, and as much again while it is made"
    )


def refuse_full_disk(out: Path, layout: Layout, done: int) -> None:
    """Raise :class:`InputError` where the parts and the result would not fit beside `out`.

    done: bytes of parts that stand there already.
    """
    needed = 2 * layout.rows * layout.row_bytes - done
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"needs {size_text(needed)} while it is made; {size_text(free)} are free"
        mend = "--dtype float16 halves it; so do fewer --layers"
        raise InputError.one(out, what, mend)


def _tokens_per_second(reader: Reader, window: Sequence[Tile]) -> float:
    dealt = batches(window, reader.batch_tokens)
    by_length = [window[i] for batch in dealt for i in batch]
    batch = by_length[:: len(dealt)]  # one batch's work, of tiles of all lengths
    _seconds(reader, batch[:1])  # the first call pays for what later ones find ready
    rate = work(batch[0]) / _seconds(reader, batch[:1])
    tokens = sum(map(work, batch))
    if len(batch) > 1 and tokens / rate < PATIENCE:
        rate = tokens / _seconds(reader, batch)
    return rate


def _seconds(reader: Reader, batch: Sequence[Tile]) -> float:
    start = time.perf_counter()
    reader.reduced(batch)
    return time.perf_counter() - start


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():  # on macOS, where getrusage counts in bytes
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux, getrusage counts what the parent held when it started this process.
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def size_text(number: float) -> str:
    """Bytes, in words."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"


def duration_text(seconds: float) -> str:
    """Seconds, in words."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
