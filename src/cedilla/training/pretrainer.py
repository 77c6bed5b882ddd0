"""The loop of masked-language-model pre-training, in one process or many.

The loss of a step is one function of its batch: the weighted cross-entropy of all corrupted
positions over the sum of their weights, whatever the number of processes and of the parts that a
batch is cut into. Its random numbers follow from the seed and the step's number alone, and are
drawn for the whole batch everywhere, so that a resumed run sees what an uninterrupted one would
have seen, and two processes see what one would have seen.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.families import LanguageModel, empty
from cedilla.models.weights import save_directory
from cedilla.progress import progress_bar
from cedilla.run_directory import Run
from cedilla.training.checkpoint import newest_step, save_step
from cedilla.training.distillation import Teacher, divergence
from cedilla.training.distributed import World, restore, spread, summing, whole_state
from cedilla.training.genomes import WindowSampler
from cedilla.training.masking import mask_tokens, token_weights, tokens_of
from cedilla.training.precision import Precision

VALIDATION_SEED = 20_000
CLIP = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long, how fast and on how much to train.

    The rate rises from `initial_learning_rate` to `learning_rate` in `warmup` steps, then falls
    with the square root of the step, and over the last `cooldown` steps in a line to zero. A batch
    of `batch_size` windows is cut into as many parts as there are processes times `accumulate`.
    Every `every` steps the model is validated and a checkpoint is written, of which `keep` are
    kept. `distill_weight` and `temperature` say how much, and how much softened, a teacher's
    expectations count.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    seed: int
    initial_learning_rate: float = 0.0
    cooldown: int = 0
    accumulate: int = 1
    soft_weight: float = 1.0
    every: int = 200
    keep: int = 3
    distill_weight: float = 0.0
    temperature: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = (step + 1) / self.warmup
        left = min(1.0, (self.steps - step) / (self.cooldown + 1))
        if done > 1:
            return left * self.learning_rate / math.sqrt(done)
        rise = self.learning_rate - self.initial_learning_rate
        return left * (self.initial_learning_rate + done * rise)


@dataclass(frozen=True, slots=True)
class Masked:
    """Corrupted ids (B, L), the right ids (B, L), and how much each position counts (B, L)."""

    corrupted: Tensor
    ids: Tensor
    weights: Tensor

    def __getitem__(self, rows: slice) -> Masked:
        return Masked(self.corrupted[rows], self.ids[rows], self.weights[rows])

    def to(self, device: torch.device) -> Masked:
        """The same on `device`."""
        return Masked(self.corrupted.to(device), self.ids.to(device), self.weights.to(device))


class Objective(nn.Module):
    """A model and its loss as one module, so that one forward pass is all that processes share."""

    def __init__(self, model: LanguageModel, precision: Precision, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self.share, self.temperature = schedule.distill_weight, schedule.temperature

    def forward(self, batch: Masked, teacher: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The weighted sums of the loss and of right answers; with a teacher's logits (n, V),
        (1 - w) · cross-entropy + w · divergence. The output layer runs where weights are > 0."""
        where = batch.weights > 0
        with self.precision.autocast():
            logits = self.model.lm_head(self.model.encode(batch.corrupted)[where])
        target, weights = batch.ids[where], batch.weights[where]
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        if teacher is not None:
            softened = divergence(logits, teacher, self.temperature)
            losses = (1 - self.share) * losses + self.share * softened
        if self.training:  # only validation wants to know
            right = losses.new_zeros(())
        else:
            right = ((logits.argmax(-1) == target) * weights).sum()
        return (losses * weights).sum(), right


class Pretrainer:
    """The optimiser's loop."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        sampler: WindowSampler,
        schedule: Schedule,
        *,
        here: World,
        precision: Precision,
        sharded: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        # Sharding takes the weights to the device part by part; whole ones may not fit there.
        self.model = (model if sharded else model.to(here.device)).train()
        self.tokenizer, self.sampler, self.schedule = tokenizer, sampler, schedule
        self.here, self.precision, self.teacher = here, precision, teacher
        self.parameters = sum(p.numel() for p in model.parameters())
        self.objective = spread(Objective(model, precision, schedule), here, sharded=sharded)
        self.optimiser = _adam(model, schedule)

    def run(self, run: Run | None, held_out: Masked, more: dict[str, float]) -> None:
        """Train to the last step, validating and saving on the way; goes on where `run` stopped.

        Only the first process has a `run`. `more` is logged beside every validation.
        """
        path = run.path / "checkpoints" if run else None
        first = self._resume(path)
        # A step is logged before its checkpoint: a kill between the two leaves an event too many.
        events = run.rewind(lambda event: event["step"] <= first) if run else []
        losses, clock = [], time.monotonic()
        with progress_bar(unit="steps") as bar:
            task = bar.add_task("pre-training", total=self.schedule.steps, completed=first)
            for step in range(first, self.schedule.steps):
                losses.append(self._finite(self.step(step), f"step {step + 1}"))
                bar.update(task, advance=1, description=f"pre-training, loss {losses[-1]:.3f}")
                if self._is_saved(step + 1):
                    event = self._event(step + 1, losses, clock) | self.validate(held_out) | more
                    self._finite(event["loss"], f"validation after step {step + 1}")
                    self._save(run, events, event)
                    losses, clock = [], time.monotonic()

    def step(self, step: int) -> float:
        """One update; returns the loss of the whole batch."""
        rng = np.random.default_rng((self.schedule.seed, step))
        batch = self.draw(rng)
        # What is random in a model follows from the step too, and differs between processes.
        torch.manual_seed(int(rng.integers(2**62)) + self.here.rank)
        total = self.here.total(batch.weights.sum())[0] or 1.0
        loss = sum(self._backward(batch, total))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return self.here.total(loss)[0] / total

    def draw(self, rng: np.random.Generator) -> Masked:
        """This process's rows of a batch, corrupted with the random numbers of the whole batch."""
        n, k = self.schedule.batch_size, self.tokenizer.k
        rows = self.here.rows(n)
        windows = self.sampler.draw(n, rng, rows)
        ids = tokens_of(windows.codes, self.tokenizer)
        whole = ids.new_zeros(n, ids.size(1))
        whole[rows] = ids
        corrupted, chosen, _ = mask_tokens(whole, self.tokenizer, rng)
        weights = token_weights(windows.soft, k, self.schedule.soft_weight) * chosen[rows]
        return Masked(corrupted[rows], ids, weights).to(self.here.device)

    @torch.no_grad()
    def validate(self, held_out: Masked) -> dict[str, float]:
        """Mean loss, perplexity and accuracy over the positions replaced by ``<mask>``."""
        mine = _share_of(held_out, self.here)
        self.objective.eval()
        loss = right = 0.0
        for part in _parts(mine, self.schedule.batch_size // self._ways):
            sums = self.objective(part.to(self.here.device))
            loss, right = loss + sums[0].item(), right + sums[1].item()
        self.objective.train()
        loss, right = self.here.total(loss, right)
        count = held_out.weights.sum().item()
        mean = loss / count
        # A loss that is far off has no perplexity that a float could hold.
        perplexity = math.exp(min(mean, 700.0))
        return {"loss": mean, "perplexity": perplexity, "accuracy": right / count}

    @property
    def _ways(self) -> int:
        """How many parts a batch is cut into."""
        return self.here.size * self.schedule.accumulate

    def _backward(self, batch: Masked, total: float) -> list[float]:
        """The gradient of the whole batch's loss, and this process's sums of it, part by part."""
        sums = []
        parts = _parts(batch, self.schedule.batch_size // self._ways)
        for number, part in enumerate(parts, start=1):
            expected = None
            if self.teacher:
                expected = self.teacher.logits(part.corrupted, part.weights > 0, self.precision)
            with summing(self.objective, last=number == len(parts)):
                loss, _ = self.objective(part, expected)
                # DDP and FSDP give the mean over processes, of which the sum is wanted.
                (loss * (self.here.size / total)).backward()
            sums.append(loss.item())
        return sums

    def _resume(self, path: Path | None) -> int:
        """Take up the newest checkpoint in `path`, which the first process has; its step."""
        state = self.here.together(lambda: newest_step(path) if path else None)
        step: int = self.here.of_first(state["step"] if state else 0)
        if step:
            restore(self.model, self.optimiser, state or {}, self.here)
        return step

    def _finite(self, loss: float, where: str) -> float:
        """`loss`, which is the same in every process, as long as it is a number."""
        if not math.isfinite(loss):
            self.here.together(partial(_refuse_divergence, where))
        return loss

    def _is_saved(self, done: int) -> bool:
        return done % self.schedule.every == 0 or done == self.schedule.steps

    def _event(self, done: int, losses: list[float], clock: float) -> dict[str, Any]:
        seconds, each = time.monotonic() - clock, self.tokens_per_step
        return {
            "event": "validation",
            "step": done,
            "tokens": done * each,
            "learning_rate": self.schedule.rate(done - 1),
            "train_loss": float(np.mean(losses)),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(len(losses) * each / seconds),
        }

    @property
    def tokens_per_step(self) -> int:
        """Of the whole batch, ``<cls>`` included."""
        return self.schedule.batch_size * (1 + self.sampler.length // self.tokenizer.k)

    def _save(self, run: Run | None, events: list[dict[str, Any]], event: dict[str, Any]) -> None:
        """Log `event`, keep the model if it is the best so far, and write a checkpoint."""
        state = whole_state(self.model, self.optimiser)
        if run is None:
            return
        events.append(event)
        run.log(**event)
        if best_of(events) is event:
            save_directory(_with_weights(self.model, state["model"]), run.path / "checkpoints/best")
        step = event["step"]
        save_step(run.path / "checkpoints", step, {"step": step, **state}, keep=self.schedule.keep)


def best_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The first validation with the lowest loss."""
    return min(events, key=lambda event: event["loss"])


def held_out_set(sampler: WindowSampler, tokenizer: Tokenizer, windows: int) -> Masked:
    """The same masked windows at every validation of every run; only ``<mask>`` counts.

    Raises :class:`InputError` for windows so few that none has one.
    """
    rng = np.random.default_rng(VALIDATION_SEED)
    ids = tokens_of(sampler.draw(windows, rng).codes, tokenizer)
    corrupted, _, masked = mask_tokens(ids, tokenizer, rng)
    if not masked.any():
        mend = "raise --validation-windows"
        raise InputError.one("held-out windows", "nothing is masked", mend)
    return Masked(corrupted, ids, masked.float())


def _adam(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """The paper's Adam, with a decoupled decay of matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    decayed = [{"params": matrices, "weight_decay": WEIGHT_DECAY}]
    return torch.optim.AdamW(
        [*decayed, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def _parts(batch: Masked, size: int) -> list[Masked]:
    return [batch[start : start + size] for start in range(0, len(batch.ids), size)]


def _share_of(held_out: Masked, here: World) -> Masked:
    """This process's rows, filled up with rows that do not count to as many as any other has:
    with shards, all processes must make the same number of passes."""
    n = len(held_out.ids)
    each = math.ceil(n / here.size)
    places = torch.arange(here.rank * each, (here.rank + 1) * each)
    counts = (places < n).float()[:, None]
    places = places.clamp(max=n - 1)
    weights = held_out.weights[places] * counts
    return Masked(held_out.corrupted[places], held_out.ids[places], weights)


def _with_weights(model: LanguageModel, weights: dict[str, Tensor]) -> LanguageModel:
    """A model of the same shape with whole weights: a sharded one has parts of them only."""
    whole = empty(model.config)
    whole.load_state_dict(weights, assign=True)
    return whole


def _refuse_divergence(where: str) -> None:
    mend = "lower --learning-rate, or raise --warmup"
    raise InputError.one(where, "the loss is not finite", mend)
