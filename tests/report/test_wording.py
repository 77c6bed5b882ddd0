"""Numbers as they are printed."""

from __future__ import annotations

import pytest

from cedilla.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.98765, "0.988"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (1, "1.000"), (None, "–")],
)
def test_decimals(value: float | None, text: str) -> None:
    assert wording.decimal(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.012, "+0.012"), (-0.5, "−0.500"), (0.0001, "0.000"), (None, "–")]
)
def test_signed(value: float | None, text: str) -> None:
    assert wording.signed(value) == text


def test_an_interval_with_a_minus_is_written_with_a_word() -> None:
    assert wording.interval((0.1, 0.2)) == "0.100–0.200"
    assert wording.interval((-0.1, 0.2)) == "−0.100 to 0.200"
    assert wording.interval(None) == ""


def test_an_undefined_end_makes_no_interval() -> None:
    assert wording.known_bounds([0.1, None]) is None
    assert wording.known_bounds(None) is None
    assert wording.known_bounds([0.1, 0.2]) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_the_rest() -> None:
    assert wording.p_value(0.0004) == "< 0.001"
    assert wording.p_value(0.034) == "0.034"
    assert wording.count(5920) == "5,920"
    assert [wording.listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
