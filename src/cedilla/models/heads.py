"""Heads: from hidden states to the outputs of a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["cls", "mean"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """hidden (B, L, D) → (B, D): the ``<cls>`` token, or the mean over the other tokens."""
    if how == "cls":
        return hidden[:, 0]
    weight = mask.to(hidden.dtype).clone()
    weight[:, 0] = 0
    return torch.einsum("bld,bl->bd", hidden, weight) / weight.sum(1, keepdim=True).clamp(min=1)


class ClassificationHead(nn.Module):
    """dropout → dense → tanh → dropout → out_proj, as in the published v2 classifier.

    It takes a pooled hidden state (B, D) and gives logits (B, outputs).
    """

    def __init__(self, hidden_size: int, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        x = torch.tanh(self.dense(self.dropout(pooled)))
        logits: Tensor = self.out_proj(self.dropout(x))
        return logits
