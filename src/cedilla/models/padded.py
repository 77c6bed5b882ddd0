"""Inference of a hybrid: sequences of like length side by side, the shorter ones padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cedilla.dna.tokenizer import pad
from cedilla.models.hybrid import Hybrid
from cedilla.models.predictor import (
    Precision,
    Predictor,
    chosen_dtype,
    device_named,
    impossible_path,
    placed,
)

# Tokens, pads among them, that are computed together, and the share of them that pads may have.
TILE_TOKENS = {"cpu": 2048, "cuda": 65_536}
PADS = 0.125
DTYPES = {f"PyTorch {name}": getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


class PaddedModel(Predictor):
    """A hybrid for inference.

    Parameters
    ----------
    model:
        The model; the weights are copied where they are not in float32 on the device.
    precision:
        float32 is exact; in bfloat16 and float16 convolutions and linear layers are computed, by
        autocast. auto is float32 on a CPU, bfloat16 on a GPU that has it, float16 on older ones.
    device:
        Where to run; the first GPU if there is one.
    path:
        A path by name, as the attribute `path` gives it, in place of `precision`.
    release:
        Move the weights of `model` instead of copying them.

    Raises
    ------
    InputError
        For a device that torch does not have here, or an unknown path.
    """

    def __init__(
        self,
        model: Hybrid,
        *,
        precision: Precision = "float32",
        device: str | torch.device | None = None,
        path: str | None = None,
        release: bool = False,
    ) -> None:
        super().__init__(model.config, device_named(device))
        self.path = path or str(chosen_dtype(precision, self.device)).replace("torch.", "PyTorch ")
        if self.path not in DTYPES:
            raise impossible_path(self.path, self.device)
        self.dtype = DTYPES[self.path]
        self._model: Hybrid = (
            model.to(self.device, torch.float32) if release else placed(model, self.device)
        )

    def _states(
        self, rows: Sequence[np.ndarray], wanted: Sequence[int]
    ) -> tuple[Tensor, Sequence[int]]:
        """Layers `wanted` (len(wanted), B · L, D) of B rows padded to L tokens."""
        if min(map(len, rows)) < 2:
            raise ValueError("a row without a base, over which <cls> could be the mean")
        ids, mask = pad(rows)
        with self._autocast():
            states = self._model.states(ids.to(self.device), mask.to(self.device), layers=wanted)
        flat = torch.stack(states).float().flatten(1, 2)
        return flat, range(0, flat.size(1), ids.size(1))

    def _logits_of(self, hidden: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self._model.lm_head(hidden)
        return logits.float()

    def _autocast(self) -> torch.autocast:
        low = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if low else None, enabled=low)

    def _tiles(self, lengths: Sequence[int], threads: int) -> list[list[int]]:
        """Rows from the longest to the shortest, as many as fit, with few pads."""
        del threads
        limit = TILE_TOKENS["cpu" if self.device.type == "cpu" else "cuda"]
        tiles: list[list[int]] = []
        size = tokens = 0
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            longest = lengths[tiles[-1][0]] if tiles else 0
            padded = size + longest
            few = padded - (tokens + lengths[i]) <= PADS * padded
            if not tiles or padded > limit or not few:
                tiles.append([])
                size, tokens, longest = 0, 0, lengths[i]
            tiles[-1].append(i)
            size, tokens = size + longest, tokens + lengths[i]
        return tiles
