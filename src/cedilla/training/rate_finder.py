"""The learning-rate range test (Smith, WACV 2017): a rate from the data instead of from habit."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import torch

from cedilla.errors import InputError
from cedilla.progress import progress_bar
from cedilla.training.batches import SequenceData
from cedilla.training.loop import Finetuner

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9
FAR = 2.0  # times the lowest loss: the training has diverged
SHARE = 0.1  # of the rate with the lowest loss, which is on the brink already


def find_rate(trainer: Finetuner, data: SequenceData) -> tuple[float, list[dict[str, Any]]]:
    """A tenth of the rate at which the smoothed loss is lowest, and the curve.

    The rate rises from 1e-6 to 1 in 100 steps, or until the loss is twice its lowest. `trainer`
    is spent afterwards, but for its model, whose weights are put back.
    """
    model, schedule = trainer.model, trainer.schedule
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    rng = np.random.default_rng(schedule.seed)
    torch.manual_seed(schedule.seed)
    passes = math.ceil(STEPS * schedule.batch_size / len(data))
    batches = chain.from_iterable(
        data.shuffled(schedule.batch_size, rng, strands=schedule.strands) for _ in range(passes)
    )
    curve: list[dict[str, Any]] = []
    mean = 0.0
    model.train()
    with progress_bar(transient=True) as bar:
        task = bar.add_task("looking for a rate", total=STEPS)
        for step, batch in zip(range(STEPS), batches, strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
            mean = SMOOTHING * mean + (1 - SMOOTHING) * trainer.update(batch, rate)
            smooth = mean / (1 - SMOOTHING ** (step + 1))
            if not smooth <= FAR * min((point["loss"] for point in curve), default=math.inf):
                break
            curve.append({"rate": rate, "loss": smooth})
            bar.update(task, advance=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.copy_(before[name])
    if not curve:
        raise InputError.one("the search for a rate", "the first loss is not finite", "name a rate")
    return SHARE * min(curve, key=lambda point: float(point["loss"]))["rate"], curve
