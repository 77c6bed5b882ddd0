"""Fusions: what a locus's measurements add to its sequence.

A fusion starts as the identity: its last layer is zero, so that before training a fused model
gives exactly the sequence model's output. What was not measured contributes nothing, before
training and after.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LocusFusion(nn.Module):
    """Adds a small network's reading of locus features to the pooled hidden state.

    Parameters
    ----------
    features:
        How many numbers a locus has (beta, annotation, …); NaN stands for *not measured*.
    hidden_size:
        Width D of the pooled hidden state.
    """

    def __init__(self, features: int, hidden_size: int, *, width: int = 32) -> None:
        super().__init__()
        # One small network per feature, so that a missing one can be left out by itself.
        self.rise = nn.Parameter(torch.randn(features, width))
        self.shift = nn.Parameter(torch.randn(features, width))
        self.project = nn.Parameter(torch.zeros(features, width, hidden_size))

    def forward(self, pooled: Tensor, features: Tensor) -> Tensor:
        """pooled (B, D), features (B, F) → (B, D)."""
        measured = ~features.isnan()
        values = features.nan_to_num(0.0)
        bumps = torch.tanh(values.unsqueeze(-1) * self.rise + self.shift)  # (B, F, width)
        bumps = bumps * measured.unsqueeze(-1)
        return pooled + torch.einsum("bfw,fwd->bd", bumps, self.project)
