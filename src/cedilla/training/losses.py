"""Losses of a row: what a model is told about its logits, where the row has labels.

Pure functions of logits and labels that give (B,) float32, each row's mean over the labels that
it has, and 0 where it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cedilla.errors import stop_on_errors, unmet
from cedilla.training.label_columns import Kind
from cedilla.training.label_values import Labels
from cedilla.training.targets import Target

LossKind = Literal["auto", "cross_entropy", "focal", "bce", "mse", "huber"]
Criterion = Callable[[Tensor, Tensor], Tensor]

_FITTING: dict[Kind, tuple[LossKind, ...]] = {
    "classes": ("cross_entropy", "focal"),
    "multilabel": ("bce", "focal"),
    "regression": ("mse", "huber"),
    "fraction": ("bce", "mse"),
    "per_base": ("cross_entropy", "focal"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Which loss, and how it treats labels that are unsure, easy or rare.

    kind: `auto` is cross-entropy for classes, of a sequence or a base, binary cross-entropy for
    yes or no and for fractions, and the mean squared error for numbers. smoothing: the share of a
    label that is spread over all classes. gamma: of the focal loss, how much less an easy label
    counts. class_weights: a weight for each class, or for the yes of each column;
    `balanced` makes every class, or yes and no, count alike in the training rows.
    """

    kind: LossKind = "auto"
    smoothing: float = 0.0
    gamma: float = 2.0
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None

    def of(self, target: Target, train_labels: Labels) -> Criterion:
        """The loss (logits, labels) → (B,) for a target, with weights from its training labels.

        Logits (B, C) and labels (B,), or (B, T) both, or (B, L, C) and (B, L). Raises
        :class:`InputError` for a loss that the target cannot have.
        """
        kind = _FITTING[target.kind][0] if self.kind == "auto" else self.kind
        self._check(target, kind)
        if kind in ("mse", "huber"):
            return _distance(target, huber if kind == "huber" else squared_error)
        weights = self._weights(target, train_labels)
        if target.kind in ("multilabel", "fraction"):
            if kind == "focal":
                return partial(binary_focal, gamma=self.gamma, positive_weights=weights)
            return partial(binary_cross_entropy, smoothing=self.smoothing, positive_weights=weights)
        if kind == "focal":
            return partial(focal, gamma=self.gamma, weights=weights)
        return partial(cross_entropy, smoothing=self.smoothing, weights=weights)

    def _check(self, target: Target, kind: LossKind) -> None:
        fitting = _FITTING[target.kind]
        smooth = kind == "cross_entropy" or (kind == "bce" and target.kind == "multilabel")
        weights = self.class_weights
        weighted = target.kind in ("classes", "multilabel", "per_base")
        given = target.outputs if isinstance(weights, str) or weights is None else len(weights)
        good = isinstance(weights, str) or all(0 < w < np.inf for w in weights or ())
        rules = [
            (
                kind in fitting,
                f"{kind} is no loss of {target.kind}",
                "take " + " or ".join(fitting),
            ),
            (0 <= self.smoothing < 1, f"label smoothing {self.smoothing}", "from 0 to below 1"),
            (smooth or not self.smoothing, f"{kind} of {target.kind} smoothes no labels", ""),
            (self.gamma >= 0, f"gamma {self.gamma}", "0 at least"),
            (weights is None or weighted, f"{target.kind} has no classes to weigh", ""),
            (given == target.outputs, f"{given} class weights for {target.outputs} outputs", ""),
            (good, f"class weights {weights}", "numbers above 0"),
        ]
        stop_on_errors(unmet("the loss", rules))

    def _weights(self, target: Target, train_labels: Labels) -> Tensor | None:
        if self.class_weights != "balanced":
            return None if self.class_weights is None else torch.tensor(self.class_weights)
        if target.kind == "multilabel":
            return balanced_columns(np.asarray(train_labels))
        flat = np.concatenate(train_labels) if target.kind == "per_base" else train_labels
        return balanced_classes(np.asarray(flat), target.outputs)


def balanced_classes(labels: np.ndarray, classes: int) -> Tensor:
    """Weights (C,) with which every class of `labels` (N,) counts alike; their mean label has 1.

    A label of -1 is missing; a class without labels has weight 1.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0)).float()


def balanced_columns(labels: np.ndarray) -> Tensor:
    """Weights (T,) of the yes with which yes and no of `labels` (N, T) count alike.

    A column that has not both has weight 1.
    """
    yes, no = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    weights = no / np.maximum(yes, 1)
    return torch.from_numpy(np.where((yes > 0) & (no > 0), weights, 1.0)).float()


def cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of classes: logits (B, C) or (B, L, C), labels (B,) or (B, L), -1 missing.

    `weights` (C,) multiply the labels of each class.
    """
    losses = _negative_log(logits, labels, smoothing, weights)
    return _row_means(losses, labels >= 0)


def focal(logits: Tensor, labels: Tensor, *, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, p being the label's probability; shapes as above.

    Source: Lin et al., ICCV 2017.
    """
    plain = _negative_log(logits, labels)
    losses = _unlikelihood(plain) ** gamma * plain
    if weights is not None:
        losses = losses * weights.to(losses.device)[labels.long().clamp(min=0)]
    return _row_means(losses, labels >= 0)


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy: logits and labels (B, T), of 0, 1 or between, NaN missing.

    `positive_weights` (T,) multiply the part of the loss that stands for a yes.
    """
    known = ~labels.isnan()
    truth = torch.where(known, labels, 0.0).float() * (1 - smoothing) + smoothing / 2
    weights = None if positive_weights is None else positive_weights.to(logits.device)
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), truth, reduction="none", pos_weight=weights
    )
    return _row_means(losses, known)


def binary_focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    positive_weights: Tensor | None = None,
) -> Tensor:
    """Focal loss of yes or no: logits and labels (B, T) of 0 and 1, NaN missing."""
    known = ~labels.isnan()
    truth = torch.where(known, labels, 0.0).float()
    plain = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    losses = _unlikelihood(plain) ** gamma * plain
    if positive_weights is not None:
        losses = torch.where(truth > 0, losses * positive_weights.to(losses.device), losses)
    return _row_means(losses, known)


def squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Squared error: predictions and labels (B, T), NaN missing."""
    known = ~labels.isnan()
    truth = torch.where(known, labels, 0.0).float()
    return _row_means(F.mse_loss(predictions.float(), truth, reduction="none"), known)


def huber(predictions: Tensor, labels: Tensor) -> Tensor:
    """Half the squared error up to an error of 1, and linear beyond; shapes as above.

    Labels are standardised, so that 1 is their spread and outliers alone are linear.
    """
    known = ~labels.isnan()
    truth = torch.where(known, labels, 0.0).float()
    return _row_means(F.huber_loss(predictions.float(), truth, reduction="none"), known)


def _distance(target: Target, loss: Criterion) -> Criterion:
    """`loss` in the space of the logits for numbers, of the fractions for fractions."""
    if target.kind == "fraction":
        return lambda logits, labels: loss(torch.sigmoid(logits.float()), labels)
    center, spread = torch.tensor(target.center), torch.tensor(target.spread)

    def standardised(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, (labels - center.to(labels.device)) / spread.to(labels.device))

    return standardised


def _negative_log(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Of the label's probability, shaped as the labels; 0 where one is missing."""
    losses = F.cross_entropy(
        logits.float().flatten(0, -2),
        labels.long().flatten(),
        weight=None if weights is None else weights.to(logits.device),
        reduction="none",
        label_smoothing=smoothing,
        ignore_index=-1,
    )
    return losses.reshape(labels.shape)


def _unlikelihood(losses: Tensor) -> Tensor:
    """1 - p of losses -log p. Not below 1e-7: for gamma < 1 the slope at 0 is infinite."""
    return -torch.expm1(-losses).clamp(max=-1e-7)


def _row_means(losses: Tensor, known: Tensor) -> Tensor:
    B = len(losses)
    losses, known = losses.reshape(B, -1), known.reshape(B, -1)
    return torch.where(known, losses, 0.0).sum(1) / known.sum(1).clamp(min=1)
