"""Inference without a single pad: sequences of unequal length laid end to end.

On a CPU the sequences are dealt into tiles of some hundred tokens and equal cost, and each core
takes one tile at a time through all blocks: its activations stay in the cache, and no core waits
for another between two operations. On a GPU all sequences are one tile.
"""

from __future__ import annotations

import copy
import heapq
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from cedilla.errors import InputError
from cedilla.models.linear_kernels import LinearKernels, fastest, usable
from cedilla.models.nucleotide_transformer import (
    MASK_SHARE_IN_TRAINING,
    Block,
    NTConfig,
    NucleotideTransformer,
)
from cedilla.models.packed_block import PackedBlock, Packing
from cedilla.models.rotary import rotary_angles

Precision = Literal["auto", "float32", "bfloat16", "float16"]
TILE_TOKENS = 640


class PackedModel:
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
        self.config = model.config
        self.device = device_named(device)
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
        self._embeddings = _placed(model.esm.embeddings, self.device)
        self._norm = _placed(model.esm.encoder["emb_layer_norm_after"], self.device)
        self._head = _placed(model.lm_head, self.device)
        self._angles = self._rotary_table(self.config.max_tokens)
        self._workers: ThreadPoolExecutor | None = None
        self._worker_count = 0

    def hidden(self, rows: Sequence[np.ndarray], layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Hidden states of each row of token ids (L_i,): (len(layers), L_i, D) float32 on the CPU.

        Layer 0 is the embedding output, layer i follows block i, the last one (-1) is after the
        final LayerNorm. Blocks behind the last layer asked for are not run.

        Raises
        ------
        ValueError
            For an empty row or one longer than the model takes, or a layer that it does not have.
        """
        wanted = self._layer_numbers(layers)

        def run(tile: Sequence[int]) -> list[Tensor]:
            states, lengths = self._states([rows[i] for i in tile], wanted)
            return list(states.cpu().split(lengths, dim=1))

        return self._each_tile(rows, run)

    def logits(
        self, rows: Sequence[np.ndarray], at: Sequence[np.ndarray] | None = None
    ) -> list[Tensor]:
        """Logits (n_i, V) float32 on the CPU at positions `at[i]` (n_i,) of each row; all if None.

        Position 0 is ``<cls>``. Raises ValueError for a row longer than the model takes.
        """
        places = [np.arange(len(row)) for row in rows] if at is None else at

        def run(tile: Sequence[int]) -> list[Tensor]:
            states, lengths = self._states([rows[i] for i in tile], [self.config.num_hidden_layers])
            starts = accumulate(lengths, initial=0)
            picked = [np.asarray(places[i]) + start for i, start in zip(tile, starts, strict=False)]
            chosen = torch.from_numpy(np.concatenate(picked)).to(self.device)
            logits: Tensor = self._head(states[0, chosen]).cpu()
            return list(logits.split([len(part) for part in picked]))

        return self._each_tile(rows, run)

    def _layer_numbers(self, layers: Sequence[int]) -> list[int]:
        n = self.config.num_hidden_layers
        for layer in layers:
            if not -n - 1 <= layer <= n:
                raise ValueError(f"there is no layer {layer}; the model has 0 to {n}")
        return [layer % (n + 1) for layer in layers]

    def _each_tile(
        self, rows: Sequence[np.ndarray], run: Callable[[Sequence[int]], list[Tensor]]
    ) -> list[Tensor]:
        """What `run` gives for each row, in the order of `rows`."""
        if not all(map(len, rows)):
            raise ValueError("a row without tokens; it has <cls> at least")
        longest = max(map(len, rows), default=0)
        if longest > self.config.max_tokens:
            raise ValueError(f"{longest} tokens; the model takes {self.config.max_tokens}")
        threads = torch.get_num_threads()
        if self.device.type != "cpu":
            tiles = [list(range(len(rows)))] if len(rows) else []
        else:
            tiles = _tiles([len(row) for row in rows], self.config, threads)
        results: list[Tensor] = [torch.empty(0)] * len(rows)
        # Too few tiles to go round: all cores work on each tile.
        calls = map if len(tiles) < threads or threads == 1 else self._pool(threads).map
        for tile, parts in zip(tiles, calls(torch.no_grad()(run), tiles), strict=True):
            for i, part in zip(tile, parts, strict=True):
                results[i] = part
        return results

    def _pool(self, threads: int) -> ThreadPoolExecutor:
        """As many workers as threads, each of which computes on one."""
        if self._workers is None or self._worker_count != threads:
            started = threading.Barrier(threads)

            def alone() -> None:
                # A thread's first look at the number takes over the one last set anywhere, so it
                # must come before the number is set, and not with the first operation.
                torch.get_num_threads()
                torch.set_num_threads(1)
                started.wait()

            self._workers = ThreadPoolExecutor(threads, initializer=alone)
            self._worker_count = threads
            list(self._workers.map(lambda _: None, range(threads)))
            torch.set_num_threads(threads)
        return self._workers

    def _states(
        self, rows: Sequence[np.ndarray], wanted: Sequence[int]
    ) -> tuple[Tensor, list[int]]:
        """Layers `wanted` (len(wanted), T, D) of rows laid end to end, and the rows' lengths."""
        lengths = [len(row) for row in rows]
        starts = list(accumulate(lengths, initial=0))
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
        positions = positions.to(self.device)
        angles = None if self._angles is None else self._angles[positions]
        offsets = torch.tensor(starts, dtype=torch.int32, device=self.device)
        packing = Packing(starts, angles, offsets)
        x = self._embed(rows, positions, offsets)
        states = x.new_empty(len(wanted), *x.shape)
        last = self.config.num_hidden_layers
        for layer in range(max(wanted) + 1):
            if layer:
                x = self._blocks[layer - 1](x, packing)
            for k, number in enumerate(wanted):
                if number == layer:
                    states[k] = self._norm(x) if layer == last else x
        return states, lengths

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


def device_named(name: str | torch.device | None) -> torch.device:
    """The device of that name, or the first GPU if there is one, or else the CPU.

    Raises :class:`InputError` for one that torch does not have here.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):  # torch without CUDA asserts that it has it
        mend = "leave it out, or see `cedilla doctor`"
        raise InputError.one(f"device {device}", "torch has no such device here", mend) from None


def batch_tokens(device: torch.device) -> int:
    """Tokens that keep `device` busy: some tiles for each thread of a CPU."""
    return (
        65_536 if device.type != "cpu" else max(16_384, 4 * TILE_TOKENS * torch.get_num_threads())
    )


def _of_path(path: str, device: torch.device) -> tuple[LinearKernels, torch.dtype]:
    kernels, _, name = path.partition(" ")
    dtype: torch.dtype = getattr(torch, name)
    for here in usable(dtype, device):
        if here.name == kernels:
            return here, dtype
    what = f"the kernels of {path!r} do not work on {device} here"
    raise InputError.one("cedilla", what, "begin anew, without --resume")


def chosen_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that `precision` means on `device`."""
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    # GPUs before Ampere, such as a T4, multiply bfloat16 slowly or not at all.
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def _placed(module: nn.Module, device: torch.device) -> Any:
    """`module` if it is float32 on `device`, else a copy that is: the caller's stays as it was."""
    weight = next(module.parameters())
    if weight.device == device and weight.dtype == torch.float32:
        return module
    return copy.deepcopy(module).to(device, torch.float32)


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
