"""What a fine-tuning would take: time, from real steps, and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cedilla.training.batches import SequenceData
from cedilla.training.blocks import activations_kept
from cedilla.training.frozen_layers import describe
from cedilla.training.plan import Plan, make_data
from cedilla.training.precision import Precision
from cedilla.training.splits import Splits, take


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """`text` for a reader; `seconds` is None where no steps were measured."""

    text: str
    seconds: float | None = None


def estimate(splits: Splits, data: dict[str, SequenceData], plan: Plan | None) -> Cost:
    """What a run would do: rows, parameters, and time from three real steps."""
    rows = ", ".join(f"{len(table):,} {split}" for split, table in splits)
    if plan is None:
        return Cost(text=f"{rows} rows; logistic regression: seconds to minutes")
    schedule = plan.schedule
    few = np.linspace(0, len(splits.train) - 1, 3 * schedule.batch_size).astype(int)
    some = take(splits.train, np.unique(few))
    sample = replace(splits, train=some, dev=some, test=None)
    long = "refuse" if plan.target.kind == "per_base" else "crop"
    seconds = plan.trainer().seconds_per_row(make_data(sample, plan.tokenizer, long)["train"])
    train, others = len(splits.train), sum(len(t) for s, t in splits if s != "train")
    # A prediction costs a third of a training step, on one strand or both.
    share = (1 + schedule.strands) / 3
    total = seconds * (
        schedule.epochs * (train + share * len(splits.dev)) + share * (train + others)
    )
    at_once = -(-schedule.batch_size // schedule.accumulate)
    tokens = max(data["train"].lengths) * at_once
    size = plan.trainable.total * 4 + plan.trainable.trainable * 12
    config: Any = plan.classifier.encoder.config
    memory = size + tokens * config.hidden_size * activations_kept(plan.classifier.encoder) * 4
    text = (
        f"{rows} rows; {plan.target}; training {plan.trainable}; about {total / 60:.1f} minutes "
        f"for {schedule.epochs} epochs on this {plan.device.type}, "
        f"{memory / 1e9 + 0.5:.1f} GB of memory"
    )
    encoder, precision = plan.classifier.encoder, Precision.of(plan.device)
    if plan.cached and (kept := describe(encoder, data.values(), precision)):
        text += f"; {kept}"
    return Cost(text=text, seconds=total)
