"""Heads: from hidden states to the outputs of a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["cls", "mean", "mean_max"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """hidden (B, L, D) → (B, D), or (B, 2 D) for `mean_max`.

    cls: the ``<cls>`` token; mean: over the other tokens; mean_max: that, and the highest value
    of each dimension, which says whether a motif is there wherever it stands.
    """
    if how == "cls":
        return hidden[:, 0]
    tokens = mask.clone()
    tokens[:, 0] = False
    weight = tokens.to(hidden.dtype)
    mean = torch.einsum("bld,bl->bd", hidden, weight) / weight.sum(1, keepdim=True).clamp(min=1)
    if how == "mean":
        return mean
    floor = torch.finfo(hidden.dtype).min
    highest = hidden.masked_fill(~tokens.unsqueeze(-1), floor).amax(1)
    return torch.cat([mean, highest], dim=-1)


def width(how: Pooling, hidden_size: int) -> int:
    """Numbers that `pool` gives per sequence."""
    return 2 * hidden_size if how == "mean_max" else hidden_size


class ClassificationHead(nn.Module):
    """dropout → dense → tanh → dropout → out_proj, as in the published v2 classifier.

    It takes a pooled hidden state (B, D), for the pooling `mean_max` (B, 2 D), and gives logits
    (B, outputs).
    """

    def __init__(
        self, hidden_size: int, outputs: int, *, pooling: Pooling = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(width(pooling, hidden_size), hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        x = torch.tanh(self.dense(self.dropout(pooled)))
        logits: Tensor = self.out_proj(self.dropout(x))
        return logits


class BaseHead(nn.Module):
    """dropout → linear at every token, as published token classifiers: (B, L, D) → (B, L, O)."""

    def __init__(self, hidden_size: int, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.out_proj(self.dropout(hidden))
        return logits
