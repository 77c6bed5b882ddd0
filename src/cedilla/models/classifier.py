"""An encoder, optionally a fusion, and a head: what is fine-tuned."""

from __future__ import annotations

from torch import Tensor, nn

from cedilla.models.fusion import LocusFusion
from cedilla.models.heads import ClassificationHead, Pooling, pool


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
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: int,
        *,
        features: int = 0,
        pooling: Pooling = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        hidden_size: int = encoder.config.hidden_size  # type: ignore[union-attr, assignment]
        self.encoder = encoder
        self.pooling: Pooling = pooling
        # The head is drawn first, so that it starts alike with and without a fusion.
        self.head = ClassificationHead(hidden_size, outputs, dropout=dropout)
        self.fusion = LocusFusion(features, hidden_size) if features else None

    def forward(self, ids: Tensor, mask: Tensor, features: Tensor | None = None) -> Tensor:
        hidden = self.encoder.encode(ids, mask)  # type: ignore[operator]
        pooled = pool(hidden, mask, self.pooling)
        if self.fusion is not None and features is not None:
            pooled = self.fusion(pooled, features)
        logits: Tensor = self.head(pooled)
        return logits
