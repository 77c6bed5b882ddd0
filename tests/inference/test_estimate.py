"""Estimates: measured, and in words."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from cedilla.errors import InputError
from cedilla.inference.estimate import estimate, refuse_full_disk
from cedilla.inference.layout import Layout
from cedilla.inference.survey import Survey
from cedilla.inference.tiles import Tile
from cedilla.inference.windows import Reader

LAYOUT = Layout(pooling="mean", layers=(1, 2), width=512, dtype="float32", rows=1_000_000)


class Slow:
    """A reader that takes a millisecond a token."""

    batch_tokens = 100

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def reduced(self, batch: Sequence[Tile]) -> list[Any]:
        self._clock[0] += sum(tile.tokens + 1 for tile in batch) / 1000
        return []


def test_time_and_size_come_from_a_measured_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    whole = Tile(
        id="x", text="", strand=0, start0=0, tokens=19, keep=(0, 19), first=True, last=True
    )
    found = Survey(records=1_000_000, bases=114_000_000, tokens=19_000_000, tiles=1_000_000)
    found.work = 20_000_000
    said = estimate(cast(Reader, Slow(clock)), [whole] * 40, found, LAYOUT)
    assert said.startswith(
        "sequences: 1,000,000; bases: 114,000,000; tokens: 19,000,000; tiles: 1,0"
    )
    assert "time: about 5.6 hours at 1,000 tokens/s; " in said
    assert re.search(r"memory: \d+\.\d [MG]B; ", said)
    assert "rows of the result: 1,000,000; its size: 4.1 GB, and as much again" in said


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=8_000_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    out = tmp_path / "not yet" / "there" / "emb.parquet"
    with pytest.raises(InputError, match=r"needs 8.2 GB while it is made; 8.0 GB are free"):
        refuse_full_disk(out, LAYOUT, 0)
    refuse_full_disk(out, LAYOUT, 300_000_000)
