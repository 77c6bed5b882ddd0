"""Numbers as a reader wants them: three decimals, true minus signs, counts with separators."""

from __future__ import annotations

from collections.abc import Sequence

MISSING = "–"


def decimal(value: float | None, digits: int = 3) -> str:
    """``0.987``, with a true minus sign, or a dash for what is not there."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def known_bounds(bounds: Sequence[float | None] | None) -> tuple[float, float] | None:
    """An interval, or None where it is absent or an end of it was not defined."""
    low, high = bounds or (None, None)
    return None if low is None or high is None else (low, high)


def signed(value: float | None, digits: int = 3) -> str:
    """``+0.012`` or ``−0.012``."""
    text = decimal(value, digits)
    return text if text[0] in "−–" or float(text) == 0 else f"+{text}"


def interval(bounds: Sequence[float] | None) -> str:
    """``0.950–0.990``, or ``−0.010 to 0.020`` where a dash would read as a minus."""
    if not bounds:
        return ""
    low, high = map(decimal, bounds)
    return f"{low} to {high}" if low[0] == "−" else f"{low}–{high}"


def p_value(value: float | None) -> str:
    """``0.034``, or ``< 0.001``."""
    return "< 0.001" if value is not None and value < 0.001 else decimal(value)


def count(value: float | None) -> str:
    """``5,920``."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
