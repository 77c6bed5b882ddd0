"""Bars: a rate where there is a unit, and nothing left in a log where they vanish."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from cedilla.progress import RateColumn, progress_bar, track


def test_a_rate_is_in_units_per_second() -> None:
    clock = [0.0]
    bar = Progress(RateColumn("tokens"), get_time=lambda: clock[0], disable=True)
    task = bar.add_task("", total=10_000)
    assert bar.columns[0](bar.tasks[0]).plain == ""  # type: ignore[union-attr, operator]
    for second in range(1, 5):
        clock[0] = float(second)
        bar.advance(task, 2000)
    assert bar.columns[0](bar.tasks[0]).plain == "2,000 tokens/s"  # type: ignore[union-attr, operator]


def test_a_bar_has_a_rate_where_there_is_a_unit() -> None:
    assert any(isinstance(c, RateColumn) for c in progress_bar(unit="tokens").columns)
    assert not any(isinstance(c, RateColumn) for c in progress_bar().columns)


def test_a_bar_that_vanishes_leaves_nothing_in_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "reading", transient=True)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert "3/3" in capfd.readouterr().err
