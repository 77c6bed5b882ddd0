"""An encoder, optionally a fusion, and a head: what is fine-tuned."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cedilla.models.fusion import LocusFusion
from cedilla.models.heads import ClassificationHead, Pooling, pool, width


class SequenceClassifier(nn.Module):
    """Logits (B, outputs) of token ids (B, L) and, with a fusion, locus features (B, F).

    Parameters
    ----------
    encoder:
        A module with ``encode(ids, mask)`` and a ``config`` with ``hidden_size``.
    outputs:
        Number of classes.
    features:
        Number of locus features; 0 builds no fusion.
    pooling:
        By default mean and maximum for models over single bases, the mean for k-mers.
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: int,
        *,
        features: int = 0,
        pooling: Pooling | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        config: Any = encoder.config
        self.encoder = encoder
        # A motif shows at single bases, where it stands; a k-mer model has mixed them already.
        self.pooling: Pooling = pooling or ("mean_max" if config.k == 1 else "mean")
        # The head is drawn first, so that it starts alike with and without a fusion.
        self.head = ClassificationHead(
            config.hidden_size, outputs, pooling=self.pooling, dropout=dropout
        )
        pooled = width(self.pooling, config.hidden_size)
        self.fusion = LocusFusion(features, pooled) if features else None

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor | None = None) -> Tensor:
        hidden = self.encoder.encode(ids, mask)  # type: ignore[operator]
        pooled = pool(hidden, mask, self.pooling)
        if self.fusion is not None and features is not None:
            pooled = self.fusion(pooled, features)
        logits: Tensor = self.head(pooled)
        return logits
