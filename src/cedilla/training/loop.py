"""The fine-tuning loop: epochs, early stopping, best and last checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cedilla.errors import InputError
from cedilla.metrics.classification import classification_metrics
from cedilla.models.classifier import SequenceClassifier
from cedilla.progress import progress_bar
from cedilla.run_directory import Run
from cedilla.training.batches import Batch, SequenceData
from cedilla.training.checkpoint import load_state, load_weights, save_state, save_weights
from cedilla.training.precision import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long, how fast and how patiently to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    select: str
    seed: int
    strands: bool = True
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0


def default_epochs(rows: int) -> int:
    """Few rows want many passes; many have said enough after three (chosen on dev sets of GUE)."""
    return min(30, max(3, round(100_000 / rows)))


class Finetuner:
    """Trains a classifier and keeps the weights of the best epoch on dev.

    An epoch's order, strands and dropout depend on the seed and the epoch's number alone, so
    that a resumed run is the uninterrupted one, number for number.
    """

    def __init__(self, model: SequenceClassifier, schedule: Schedule, device: torch.device) -> None:
        self.model = model.to(device)
        self.schedule = schedule
        self.device = device
        self.precision = Precision.of(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": schedule.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=schedule.learning_rate,
            fused=True,
        )

    def fit(self, run: Run, train: SequenceData, dev: SequenceData) -> dict[str, Any]:
        """Train; leaves the best weights in the model. Returns the best epoch's event."""
        last, best = run.path / "checkpoints" / "last", run.path / "checkpoints" / "best"
        first = load_state(last, self.model, self.optimiser, self.scaler)
        # An epoch is logged before its checkpoint: a kill between the two leaves an event too many.
        events = run.rewind(lambda event: event["epoch"] <= first)
        while first < self.schedule.epochs and not self._exhausted(events):
            event = self._epoch(first, train, dev)
            events.append(event)
            run.log(**event)
            if self._best(events) is event:
                save_weights(best, self.model)
            first += 1
            save_state(last, self.model, self.optimiser, self.scaler, step=first)
        load_weights(best, self.model)
        return self._best(events)

    def predict(self, data: SequenceData, description: str = "predicting") -> np.ndarray:
        """Probabilities (N, C) of every row in order, averaged over both strands."""
        logits = self.logits(data, description)
        return torch.softmax(logits, dim=-1).numpy()

    @torch.no_grad()
    def logits(self, data: SequenceData, description: str) -> Tensor:
        """Logits (N, C) float32 in the order of the rows, averaged over strands."""
        self.model.eval()
        size = 4 * self.schedule.batch_size
        strands = range(1 + self.schedule.strands)
        total: Tensor | None = None
        with progress_bar(transient=True) as bar:
            task = bar.add_task(description, total=len(data) * len(strands))
            for strand in strands:
                for batch in data.ordered(size, strand):
                    out = self._forward(batch).float().cpu() / len(strands)
                    total = torch.zeros(len(data), out.size(1)) if total is None else total
                    total[batch.rows] += out
                    bar.update(task, advance=len(batch))
        if total is None:
            raise ValueError("no rows")
        return total

    def seconds_per_row(self, data: SequenceData) -> float:
        """Measured over a few training steps; the first, which allocates, is left out."""
        rng = np.random.default_rng(0)
        times = []
        for batch in data.shuffled(self.schedule.batch_size, rng, strands=self.schedule.strands):
            clock = time.monotonic()
            self._step(batch, 0.0)
            times.append((time.monotonic() - clock) / len(batch))
        return min(times[1:] or times)

    def _epoch(self, epoch: int, train: SequenceData, dev: SequenceData) -> dict[str, Any]:
        schedule = self.schedule
        clock = time.monotonic()
        rng = np.random.default_rng((schedule.seed, epoch))
        torch.manual_seed(int(rng.integers(2**62)))  # dropout
        self.model.train()
        steps = math.ceil(len(train) / schedule.batch_size)
        losses = []
        label = f"epoch {epoch + 1} of {schedule.epochs}"
        with progress_bar(transient=True) as bar:
            task = bar.add_task(label, total=steps)
            for i, batch in enumerate(
                train.shuffled(schedule.batch_size, rng, strands=schedule.strands)
            ):
                losses.append(self._step(batch, (epoch * steps + i) / (schedule.epochs * steps)))
                _refuse_divergence(losses[-1], f"epoch {epoch + 1}, step {i + 1}")
                bar.update(task, advance=1, description=f"{label}, loss {losses[-1]:.3f}")
        logits = self.logits(dev, "dev")
        probabilities = torch.softmax(logits, -1).numpy()
        dev_loss = F.cross_entropy(logits, dev.labels).item()
        _refuse_divergence(dev_loss, f"epoch {epoch + 1}, dev")
        return {
            "event": "epoch",
            "epoch": epoch + 1,
            "train_loss": float(np.mean(losses)),
            "dev_loss": dev_loss,
            "dev": classification_metrics(dev.labels.numpy(), probabilities),
            "seconds": round(time.monotonic() - clock, 2),
        }

    def _step(self, batch: Batch, progress: float) -> float:
        """One update at `progress` in [0, 1): linear warm-up, then cosine decay to a hundredth."""
        schedule = self.schedule
        rise = (progress + 1e-3) / schedule.warmup
        fall = 0.505 + 0.495 * math.cos(
            math.pi * max(0.0, progress - schedule.warmup) / (1 - schedule.warmup)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = schedule.learning_rate * min(rise, 1.0) * fall
        loss = F.cross_entropy(self._forward(batch).float(), batch.labels.to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()

    def _forward(self, batch: Batch) -> Tensor:
        features = None if batch.features is None else batch.features.to(self.device)
        with self.precision.autocast():
            logits: Tensor = self.model(
                batch.ids.to(self.device), batch.mask.to(self.device), features
            )
        return logits

    def _best(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """The first epoch with the highest dev metric; every metric here is better when higher."""
        return max(events, key=lambda event: event["dev"][self.schedule.select])

    def _exhausted(self, events: list[dict[str, Any]]) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        if not events or not self.schedule.patience:
            return False
        return len(events) - self._best(events)["epoch"] >= self.schedule.patience


def _refuse_divergence(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise InputError.one(where, "the loss is not finite", "lower --learning-rate")
