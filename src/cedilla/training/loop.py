"""The fine-tuning loop: epochs, early stopping, best and last checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.progress import console, progress_bar
from cedilla.run_directory import Run
from cedilla.training.batches import NO_LABEL, Batch, SequenceData
from cedilla.training.checkpoint import load_state, load_weights, save_state, save_weights
from cedilla.training.losses import Criterion
from cedilla.training.optimisation import Average, Decay, parameter_groups, rate_at
from cedilla.training.precision import Precision
from cedilla.training.targets import DIRECTION, Target

AfterEpoch = Callable[[dict[str, Any]], None]  # gets the epoch's event
LAST = "last"  # the epoch that is kept, where no metric chooses one
NAMED = 5  # records of a batch that a message names


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long, how fast and how patiently to train.

    accumulate: parts that a batch is computed in, for memory. layer_decay: of the rate, from each
    layer to the one below it. ema: of the averaged weights, 0 for none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    select: str
    seed: int
    strands: bool = True
    warmup: float = 0.1
    decay: Decay = "cosine"
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0


def default_epochs(rows: int) -> int:
    """Few rows want many passes, and many rows some (chosen on training rows of GUE)."""
    return min(30, max(8, round(100_000 / rows)))


class Finetuner:
    """Trains a classifier and keeps the weights of the last epoch, or of the best one on dev.

    An epoch's order, strands and dropout depend on the seed and the epoch's number alone, so
    that a resumed run is the uninterrupted one, number for number. A batch that does not fit into
    memory is computed in parts, with the gradient of the whole.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        schedule: Schedule,
        device: torch.device,
        *,
        target: Target,
        criterion: Criterion,
    ) -> None:
        self.model = model.to(device)
        self.schedule, self.target, self.criterion = schedule, target, criterion
        self.device = device
        self.precision = Precision.of(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        self.at_once = math.ceil(schedule.batch_size / schedule.accumulate)  # rows, in training
        groups = parameter_groups(
            model, weight_decay=schedule.weight_decay, layer_decay=schedule.layer_decay
        )
        self.optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
        self.average = Average(model, schedule.ema) if schedule.ema else None

    def fit(
        self,
        run: Run,
        train: SequenceData,
        dev: SequenceData,
        after_epoch: AfterEpoch | None = None,
    ) -> dict[str, Any]:
        """Train; leaves the best weights in the model. Returns the best epoch's event.

        `after_epoch` gets every epoch once it is on disk, in a resumed run those before too; what
        it raises ends the training.
        """
        after_epoch = after_epoch or (lambda event: None)
        last, best = run.path / "checkpoints" / "last", run.path / "checkpoints" / "best"
        state = load_state(last, self.model, self.optimiser, self.scaler)
        first = int(state.get("step", 0))
        self.at_once = int(state.get("at_once", self.at_once))
        if self.average and "average" in state:
            self.average.restore(state["average"])
        # An epoch is logged before its checkpoint: a kill between the two leaves an event too many.
        events = run.rewind(lambda event: event["event"] != "epoch" or event["epoch"] <= first)
        events = [event for event in events if event["event"] == "epoch"]
        for event in events:
            after_epoch(event)
        while first < self.schedule.epochs and not self._exhausted(events):
            event = self._epoch(first, train, dev)
            events.append(event)
            run.log(**event)
            if self._best(events) is event:
                with self.averaged():
                    save_weights(best, self.model)
            first += 1
            more: dict[str, Any] = {"at_once": self.at_once}
            more |= {"average": self.average.state()} if self.average else {}
            save_state(last, self.model, self.optimiser, self.scaler, step=first, **more)
            after_epoch(event)
        load_weights(best, self.model)
        return self._best(events)

    def predictions(self, logits: Tensor | list[Tensor]) -> Any:
        """What the target makes of logits, as :meth:`logits` gives them."""
        if isinstance(logits, Tensor):
            return self.target.predictions(logits)
        return [self.target.predictions(row) for row in logits]

    @torch.no_grad()
    def logits(self, data: SequenceData, description: str) -> Tensor | list[Tensor]:
        """Logits (N, C) float32 in the order of the rows, averaged over strands and pieces.

        With an output a base, a list of (S_i, C).
        """
        if not len(data):
            raise ValueError("no rows")
        self.model.eval()
        strands = range(1 + self.schedule.strands)
        total = torch.zeros(len(data), self.model.outputs)
        by_base: list[Any] = [0.0] * len(data)
        share = 1 / (len(strands) * np.bincount(data.owners, minlength=len(data)))
        with progress_bar(transient=True) as bar:
            task = bar.add_task(description, total=len(data.owners) * len(strands))
            for strand in strands:
                for batch in data.ordered(4 * self.schedule.batch_size, strand):
                    for part, out in self._in_memory(batch, self._outputs):
                        if part.bases is None:
                            weights = torch.from_numpy(share[part.rows]).float().unsqueeze(1)
                            total.index_add_(0, torch.from_numpy(part.rows), out * weights)
                            continue
                        for row, bases, logits in zip(part.rows, part.bases, out, strict=True):
                            known = logits[bases > 0]  # pads stand at <cls>
                            known = known.flip(0) if strand else known
                            by_base[row] = by_base[row] + known / len(strands)
                    bar.update(task, advance=len(batch))
        return by_base if data.per_base else total

    def averaged(self) -> AbstractContextManager[None]:
        """The model with the averaged weights, where they are kept."""
        return self.average.in_place() if self.average else nullcontext()

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
                if not math.isfinite(losses[-1]):
                    raise _divergence(f"epoch {epoch + 1}, step {i + 1}, {_named(batch, train)}")
                bar.update(task, advance=1, description=f"{label}, loss {losses[-1]:.3f}")
        with self.averaged():
            logits = self.logits(dev, "dev")
        dev_loss = self._loss_of(logits, dev)
        if not math.isfinite(dev_loss):
            raise _divergence(f"epoch {epoch + 1}, dev")
        return {
            "event": "epoch",
            "epoch": epoch + 1,
            "train_loss": float(np.mean(losses)),
            "dev_loss": dev_loss,
            "dev": self.target.score(dev.labels, self.predictions(logits)),
            "seconds": round(time.monotonic() - clock, 2),
        }

    def _step(self, batch: Batch, progress: float) -> float:
        """One update at `progress` in [0, 1) of the training; returns the batch's mean loss."""
        schedule = self.schedule
        share = rate_at(progress, warmup=schedule.warmup, decay=schedule.decay)
        return self.update(batch, schedule.learning_rate * share)

    def update(self, batch: Batch, rate: float) -> float:
        """One update at a rate; returns the batch's mean loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss: float = self._in_memory(batch, self._gradient)
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average:
            self.average.update()
        return loss

    def _gradient(self, batch: Batch) -> float:
        """The gradient of the batch's mean loss over the rows that have a label."""
        self.optimiser.zero_grad(set_to_none=True)
        rows = max(1, int(_labelled(batch.labels).sum()))
        total = 0.0
        for part in batch.parts(self.at_once):
            losses = self.criterion(self._forward(part).float(), part.labels.to(self.device))
            loss = losses.sum() / rows
            self.scaler.scale(loss).backward()
            total += loss.item()
        return total

    def _outputs(self, batch: Batch) -> list[tuple[Batch, Tensor]]:
        """The batch in parts that fit, each with its logits on the CPU."""
        size = 4 * self.at_once if self.at_once > 1 else 1  # without gradients more fit
        return [(part, self._forward(part).float().cpu()) for part in batch.parts(size)]

    def _in_memory(self, batch: Batch, compute: Callable[[Batch], Any]) -> Any:
        """`compute(batch)`, in more and smaller parts whenever memory runs out."""
        cuda = [self.device] if self.device.type == "cuda" else []
        state, on_gpu = torch.get_rng_state(), [torch.cuda.get_rng_state(gpu) for gpu in cuda]
        while True:
            try:
                return compute(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.at_once == 1:
                    raise
            self.at_once = math.ceil(self.at_once / 2)
            console.print(f"note: out of memory: going on with {self.at_once} sequences at once")
            self.optimiser.zero_grad(set_to_none=True)
            torch.set_rng_state(state)  # dropout is drawn anew as it was
            for gpu, drawn in zip(cuda, on_gpu, strict=True):
                torch.cuda.set_rng_state(drawn, gpu)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _loss_of(self, logits: Tensor | list[Tensor], data: SequenceData) -> float:
        """The mean loss of predicted rows that have a label."""
        if isinstance(logits, Tensor):
            labels = torch.from_numpy(data.labels)
            losses, known = self.criterion(logits, labels), _labelled(labels)
            return (losses.sum() / known.sum().clamp(min=1)).item()
        labelled, total = 0, 0.0
        for row, given in zip(logits, data.labels, strict=True):
            one = torch.from_numpy(np.asarray(given, dtype=np.int64))[None]
            labelled += int(_labelled(one).sum())
            total += self.criterion(row[None], one).sum().item()
        return total / max(1, labelled)

    def _forward(self, batch: Batch) -> Tensor:
        features, bases = (
            None if some is None else some.to(self.device) for some in (batch.features, batch.bases)
        )
        with self.precision.autocast():
            logits: Tensor = self.model(
                batch.ids.to(self.device), batch.mask.to(self.device), features, bases
            )
        return logits

    def _best(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """The last epoch, or the first with the best dev metric, in the declared direction."""
        if self.schedule.select == LAST:
            return events[-1]
        sign = 1 if DIRECTION[self.schedule.select] == "higher" else -1
        return max(events, key=lambda event: sign * self._selected(event))

    def _selected(self, event: dict[str, Any]) -> float:
        name = self.schedule.select
        value = dev_score(event, name)
        worst = -math.inf if DIRECTION[name] == "higher" else math.inf
        return worst if math.isnan(value) else value

    def _exhausted(self, events: list[dict[str, Any]]) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        if not events or not self.schedule.patience:
            return False
        return len(events) - self._best(events)["epoch"] >= self.schedule.patience


def dev_score(event: dict[str, Any], metric: str) -> float:
    """A metric of an epoch's event, or `loss`; NaN where it has none, as of a constant."""
    value = event["dev_loss"] if metric == "loss" else event["dev"][metric]
    return math.nan if value is None else float(value)


def _labelled(labels: Tensor) -> Tensor:
    """Which rows (B,) of a batch have a label."""
    if labels.is_floating_point():
        return ~labels.isnan().all(1)
    if labels.ndim == 1:
        return torch.ones_like(labels, dtype=torch.bool)
    return (labels != NO_LABEL).any(1)


def _named(batch: Batch, data: SequenceData) -> str:
    """Where the first few records of a batch stand."""
    names = [data.name(row) for row in batch.rows[:NAMED]]
    more = len(batch) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _divergence(where: str) -> InputError:
    return InputError.one(where, "the loss is not finite", "lower --learning-rate")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
