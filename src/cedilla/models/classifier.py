"""An encoder, optionally a fusion, and a head: what is fine-tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cedilla.models.fusion import LocusFusion
from cedilla.models.heads import BaseHead, ClassificationHead, Pooling, pool, width


class SequenceClassifier(nn.Module):
    """Logits of token ids (B, L): (B, outputs) a sequence, or (B, S, outputs) a base.

    With a fusion, locus features (B, F) go in as well.

    Parameters
    ----------
    encoder:
        A module with ``encode(ids, mask)`` and a ``config`` with ``hidden_size`` and ``k``.
    outputs:
        Numbers a sequence, or a base: classes, or columns.
    features:
        Number of locus features; 0 builds no fusion.
    pooling:
        By default mean and maximum for models over single bases, the mean for k-mers.
    per_base:
        A head for every base instead of the pooled sequence. Each token's hidden state gives the
        outputs of all its k bases.
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: int,
        *,
        features: int = 0,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
        per_base: bool = False,
    ) -> None:
        super().__init__()
        config: Any = encoder.config
        self.encoder = encoder
        self.outputs = outputs
        # A motif shows at single bases, where it stands; a k-mer model has mixed them already.
        self.pooling: Pooling = pooling or ("mean_max" if config.k == 1 else "mean")
        # The head is drawn first, so that it starts alike with and without a fusion.
        self.head: nn.Module = (
            BaseHead(config.hidden_size, config.k * outputs, dropout=dropout)
            if per_base
            else ClassificationHead(
                config.hidden_size, outputs, pooling=self.pooling, dropout=dropout
            )
        )
        pooled = width(self.pooling, config.hidden_size)
        self.fusion = LocusFusion(features, pooled) if features else None

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        features: Tensor | None = None,
        bases: Tensor | None = None,
    ) -> Tensor:
        """Logits; with a head a base, `bases` (B, S) says where each stands among k a token."""
        hidden: Tensor = self.encoder.encode(ids, mask)  # type: ignore[operator]
        if bases is not None:
            B, _, _ = hidden.size()
            outputs = self.head(hidden).reshape(B, -1, self.outputs)  # (B, L · k, outputs)
            return torch.gather(outputs, 1, bases.unsqueeze(-1).expand(-1, -1, self.outputs))
        pooled = pool(hidden, mask, self.pooling)
        if self.fusion is not None and features is not None:
            pooled = self.fusion(pooled, features)
        logits: Tensor = self.head(pooled)
        return logits
