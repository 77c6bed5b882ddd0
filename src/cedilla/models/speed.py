"""How much a model computes, and how much a machine can: what utilisation is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cedilla.models.linear_kernels import usable
from cedilla.models.nucleotide_transformer import NTConfig

# Shapes (tokens, in, out) of this family's layers; the best of them counts as the peak.
SHAPES = ((512, 512, 4096), (1024, 512, 2048), (1024, 2048, 512))
GPU_SHAPES = ((16384, 512, 4096), (8192, 4096, 4096))


def flops(config: NTConfig, lengths: Iterable[int]) -> float:
    """Floating-point operations of the blocks on sequences of `lengths` tokens, without pads.

    Matrix products only, two operations a multiplication: query, key, value and output, the
    feed-forward layers, the scores and their sums.
    """
    d, f = config.hidden_size, config.intermediate_size
    weights = 4 * d * d + (3 if config.gated else 2) * d * f
    per_layer = sum(2 * n * weights + 4 * n * n * d for n in lengths)
    return float(config.num_hidden_layers * per_layer)


def seconds(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall time of one call, until `device` has finished."""
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    clock = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock


class MatrixPeak:
    """The highest rate of plain matrix products that was seen, in operations a second.

    `measure` may be called again and again, between the things that are compared with it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.best = 0.0
        self._device = torch.device(device)
        self._calls: list[tuple[float, Callable[[], Tensor]]] = []
        for T, K, N in SHAPES if self._device.type == "cpu" else GPU_SHAPES:
            x, weight = (torch.randn(rows, K).to(self._device, dtype) for rows in (T, N))
            for kernels in usable(dtype, self._device):
                packed = kernels.pack(weight)
                call = _product(kernels.linear, x, packed)
                self._calls.append((2.0 * T * K * N, call))

    @torch.inference_mode()
    def measure(self, rounds: int = 3) -> float:
        """The best rate so far, after `rounds` more of every shape and kernel."""
        for operations, call in self._calls * rounds:
            self.best = max(self.best, operations / seconds(call, self._device))
        return self.best


def _product(linear: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: linear(x, weight, None)
