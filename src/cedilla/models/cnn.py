"""The strong small baseline: a dilated residual convolutional network over single bases.

About 0.3 M parameters, trained from scratch. A language model that does not beat it has not
earned its place. The form is that of BPNet (Avsec et al., Nature Genetics 2021), with a
LayerNorm before each convolution, so that pads change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from cedilla.dna.tokenizer import PAD, SPECIAL
from cedilla.models.convolution import convolve


@dataclass(frozen=True, kw_only=True, slots=True)
class CNNConfig:
    """The shape of the network; the tokenizer reads `k`, `version` and `max_tokens`."""

    hidden_size: int = 128
    num_hidden_layers: int = 6
    stem_width: int = 13
    embedding_size: int = 16
    k: int = 1
    version: int = 2
    max_tokens: int = 100_000

    @property
    def vocab_size(self) -> int:
        """Special tokens, four bases as 1-mers, four bases and N as left-overs."""
        return len(SPECIAL[self.version]) + 4**self.k + 5


class DilatedCNN(nn.Module):
    """Token ids (B, L) of single bases → hidden (B, L, D)."""

    def __init__(self, config: CNNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CNNConfig()
        d = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=PAD)
        self.stem = nn.Conv1d(
            config.embedding_size, d, config.stem_width, padding=config.stem_width // 2
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(config.num_hidden_layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(d, d, 3, padding=2**i, dilation=2**i) for i in range(config.num_hidden_layers)
        )
        self.last_norm = nn.LayerNorm(d)

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last hidden state (B, L, D); pads are zero before every convolution."""
        mask = ids != PAD if mask is None else mask
        real = mask.unsqueeze(-1)
        x = convolve(self.stem, self.embeddings(ids) * real)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolve(cast(nn.Conv1d, convolution), F.gelu(norm(x)) * real)
        hidden: Tensor = self.last_norm(x)
        return hidden
