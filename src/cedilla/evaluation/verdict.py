"""From paired differences to one sentence that the numbers carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Call = Literal["adds", "adds nothing measurable", "hurts"]
CONTROLS = ("shuffled", "missing")
CEILING = 0.9995


def verdict(
    differences: Sequence[dict[str, Any]],
    arms: dict[str, dict[str, Any]],
    *,
    label: str,
    limits: Sequence[str],
    scope: str = "",
) -> dict[str, Any]:
    """Judge by the AUROC of the first pair, and by the controls.

    ``adds`` and ``hurts`` want a 95 % interval on one side of zero. A control (shuffled or
    missing methylation) that itself gains at least half as much refutes a gain.

    `scope` says in a few words what the rows are; the sentence claims no more than that.

    Returns
    -------
    dict with ``call``, ``sentence`` and ``limits``.
    """
    by_auroc = [d for d in differences if d["metric"] == "auroc"]
    main = by_auroc[0]
    controls = [d for d in by_auroc if d["arm"] in CONTROLS and d["against"] == "sequence"]
    gains = [d for d in controls if d["low"] > 0 and d["difference"] >= main["difference"] / 2]
    refuting = gains if main["low"] > 0 else []
    call: Call = "adds nothing measurable"
    if main["high"] < 0:
        call = "hurts"
    elif main["low"] > 0 and not refuting:
        call = "adds"
    parts = [_lead(call, main, arms, label)]
    if refuting:
        names = " and ".join(d["arm"] for d in refuting)
        parts.append(
            f"The control with {names} methylation gained too, so the gain does not count."
        )
    else:
        parts += [_control(d) for d in controls]
    if scope:
        parts.append(f"This speaks for {scope} only.")
    return {"call": call, "sentence": " ".join(parts), "limits": list(limits)}


def _lead(call: Call, main: dict[str, Any], arms: dict[str, dict[str, Any]], label: str) -> str:
    against = main["against"].replace("+", " and ")
    with_beta, without = arms[main["arm"]]["auroc"], arms[main["against"]]["auroc"]
    preposition = {"adds": "to", "hurts": "beside", "adds nothing measurable": "beyond"}[call]
    text = (
        f"For {label}, methylation {call} {preposition} {against}: "
        f"AUROC {with_beta:.3f} against {without:.3f}, {_interval(main)}."
    )
    if without >= CEILING:
        text += " Without it nothing is left to gain."
    elif call == "adds nothing measurable" and main["smallest_detectable"]:
        smallest = main["smallest_detectable"]
        text += f" A true difference of {smallest:.3f} would have been found with 80 % power."
    return text


def _control(difference: dict[str, Any]) -> str:
    if difference["low"] == difference["high"] == 0:
        return f"{difference['arm'].capitalize()} methylation changed nothing at all."
    moved = difference["low"] > 0 or difference["high"] < 0
    what = "moved the result" if moved else "brought nothing"
    return f"{difference['arm'].capitalize()} methylation {what} ({_interval(difference)})."


def _interval(difference: dict[str, Any]) -> str:
    low, high, p = difference["low"], difference["high"], difference["p"]
    text = f"{difference['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, p = {p:.2g}"
    return text.replace("-", "−")
