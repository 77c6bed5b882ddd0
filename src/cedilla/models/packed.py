"""Inference of a Nucleotide Transformer without a single pad: sequences laid end to end.

On a CPU they are dealt into tiles of some hundred tokens and equal cost; on a GPU all sequences are
one tile.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cedilla.models.linear_kernels import LinearKernels, fastest, usable
from cedilla.models.nucleotide_transformer import (
    MASK_SHARE_IN_TRAINING,
    Block,
    NTConfig,
    NucleotideTransformer,
)
from cedilla.models.packed_block import PackedBlock, Packing
from cedilla.models.predictor import (
    TILE_TOKENS,
    Precision,
    Predictor,
    chosen_dtype,
    device_named,
    impossible_path,
    placed,
)
from cedilla.models.rotary import rotary_angles


class PackedModel(Predictor):
    """A Nucleotide Transformer for inference, on the fastest path that this machine has.

    Parameters
    ----------
    model:
        The model. Its weights are copied where a path needs them in another layout or type.
    precision:
        float32 is exact; bfloat16 and float16 keep the residual stream and the rotary angles in
        float32. auto is float32 on a CPU, bfloat16 on a GPU that has it, float16 on older ones.
    device:
        Where to run; the first GPU if there is one.
    path:
        A path by name, as the attribute `path` gives it, in place of `precision` and of the
        measurement that chooses. Two runs that must give the same bytes take the same path.
    release:
        Give up the weights of `model` block by block as they are copied, so that they are never
        held twice. The model cannot be used afterwards.

    Raises
    ------
    InputError
        For a device that torch does not have here, or a path whose kernels do not work on it.
    """

    def __init__(
        self,
        model: NucleotideTransformer,
        *,
        precision: Precision = "float32",
        device: str | torch.device | None = None,
        path: str | None = None,
        release: bool = False,
    ) -> None:
        super().__init__(model.config, device_named(device))
        if path is None:
            self.dtype = chosen_dtype(precision, self.device)
            self.kernels = fastest(self.dtype, self.device)
        else:
            self.kernels, self.dtype = _of_path(path, self.device)
        self.path = f"{self.kernels.name} {str(self.dtype).removeprefix('torch.')}"
        self._blocks = []
        for block in model.esm.blocks:
            packed = PackedBlock(
                cast(Block, block), self.config, self.kernels, self.dtype, self.device
            )
            self._blocks.append(packed)
            if release:
                block.to("meta")
        self._embeddings = placed(model.esm.embeddings, self.device)
        self._norm = placed(model.esm.encoder["emb_layer_norm_after"], self.device)
        self._head = placed(model.lm_head, self.device)
        self._angles = self._rotary_table(self.config.max_tokens)

    def _logits_of(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        return logits

    def _tiles(self, lengths: Sequence[int], threads: int) -> list[list[int]]:
        if self.device.type != "cpu":
            return [list(range(len(lengths)))]
        return _tiles(lengths, self.config, threads)

    def _states(
        self, rows: Sequence[np.ndarray], wanted: Sequence[int]
    ) -> tuple[Tensor, Sequence[int]]:
        """Layers `wanted` (len(wanted), T, D) of rows laid end to end, and where each begins.

        Blocks behind the last layer that is wanted are not run.
        """
        lengths = [len(row) for row in rows]
        starts = list(accumulate(lengths, initial=0))
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
        positions = positions.to(self.device)
        angles = None if self._angles is None else self._angles[positions]
        offsets = torch.tensor(starts, dtype=torch.int32, device=self.device)
        packing = Packing(starts, angles, offsets)
        x = self._embed(rows, positions, offsets)
        states = x.new_empty(len(wanted), *x.shape)
        last = self.config.last_layer
        for layer in range(max(wanted) + 1):
            if layer:
                x = self._blocks[layer - 1](x, packing)
            for k, number in enumerate(wanted):
                if number == layer:
                    states[k] = self._norm(x) if layer == last else x
        return states, starts[:-1]

    def _embed(self, rows: Sequence[np.ndarray], positions: Tensor, offsets: Tensor) -> Tensor:
        """The embedding output (T, D) float32."""
        config, table = self.config, self._embeddings
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(self.device)
        x: Tensor = table.word_embeddings(ids)
        if config.token_dropout:
            masked = ids == config.mask_token_id
            row_of = torch.repeat_interleave(offsets.diff().long())
            count = offsets.diff()
            hidden = torch.zeros(len(count), device=x.device).index_add_(0, row_of, masked.float())
            scale = (1 - MASK_SHARE_IN_TRAINING) / (1 - hidden / count)
            x = x.masked_fill(masked.unsqueeze(-1), 0.0) * scale[row_of, None]
        if not config.rotary:
            x = x + table.position_embeddings(positions + config.pad_token_id + 1)
        return x

    def _rotary_table(self, length: int) -> Tensor | None:
        """cos + i sin (length, 1, head size / 2)."""
        if not self.config.rotary:
            return None
        size = self.config.head_size
        cos, sin = rotary_angles(length, size, self.config.rope_scaling, self.device)
        return torch.complex(cos[:, None, : size // 2], sin[:, None, : size // 2])


def _of_path(path: str, device: torch.device) -> tuple[LinearKernels, torch.dtype]:
    kernels, _, name = path.partition(" ")
    dtype: torch.dtype = getattr(torch, name)
    for here in usable(dtype, device):
        if here.name == kernels:
            return here, dtype
    raise impossible_path(path, device)


def _tiles(lengths: Sequence[int], config: NTConfig, threads: int) -> list[list[int]]:
    """Indices of sequences, dealt into tiles of about TILE_TOKENS tokens or one longer sequence.

    As many tiles for each thread, of about the same cost: the costliest sequence goes first, to
    the tile that has least.
    """
    each = math.ceil(sum(lengths) / (threads * TILE_TOKENS))
    n = min(len(lengths), threads * each)
    # Operations of n tokens are n · (this + n), but for a factor.
    linear = 2 * config.hidden_size + (1.5 if config.gated else 1) * config.intermediate_size
    costs = [length * (linear + length) for length in lengths]
    tiles: list[list[int]] = [[] for _ in range(n)]
    load = [(0.0, k) for k in range(n)]
    for i in sorted(range(len(lengths)), key=lambda i: -costs[i]):
        least, k = heapq.heappop(load)
        tiles[k].append(i)
        heapq.heappush(load, (least + costs[i], k))
    return tiles
