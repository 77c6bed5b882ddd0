"""Linear layers for inference: PyTorch's own, and oneDNN's with what follows fused into them.

PyTorch multiplies float32 matrices by MKL, which leaves part of an AMD processor unused; oneDNN
does not, and applies an activation, a product or a sum while a result is still in registers. Its
operators are private in PyTorch, so they are tried before they are trusted (:func:`fastest`).
"""

from __future__ import annotations

import time
from functools import cache, partial
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "swish", "gelu"]
# PyTorch's own are taken only where they are clearly faster: equal machines take the same path.
CLEARLY_SLOWER = 0.9


class LinearKernels(Protocol):
    """What a block needs: weights (out, in) packed once, applied to x (T, in)."""

    name: str

    def pack(self, weight: Tensor) -> Tensor:
        """The weight in the kernels' own layout."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
    ) -> Tensor:
        """activation(x Wᵀ + b) (T, out)."""

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        """other · x Wᵀ (T, out)."""

    def plus(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
        """other + x Wᵀ + b (T, out)."""


class PyTorchKernels:
    """``F.linear`` and element-wise operations, on any device in any precision."""

    name = "PyTorch"

    def pack(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        if activation == "swish":
            return F.silu(y, inplace=True)
        return F.gelu(y) if activation == "gelu" else y

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        return F.linear(x, weight).mul_(other)

    def plus(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
        return F.linear(x, weight, bias).add_(other)


class OneDNNKernels:
    """oneDNN's fused linear layers, on a CPU in float32 or bfloat16."""

    name = "oneDNN"

    def pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        return packed

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none"
    ) -> Tensor:
        exact = "none" if activation == "gelu" else ""
        fused = torch.ops.mkldnn._linear_pointwise
        y: Tensor = fused(x, weight, bias, activation, [], exact)
        return y

    def times(self, x: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "mul")
        return y

    def plus(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
        return y


def usable(dtype: torch.dtype, device: torch.device) -> list[LinearKernels]:
    """The kernels that work for `dtype` on `device`, PyTorch's own first."""
    could = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return [PyTorchKernels(), *([OneDNNKernels()] if could and _sound(dtype) else [])]


@cache
def fastest(dtype: torch.dtype, device: torch.device) -> LinearKernels:
    """The fastest kernels for `dtype` on `device`, by a few milliseconds of measurement."""
    plain, *fused = usable(dtype, device)
    if not fused or gain(dtype) < CLEARLY_SLOWER:
        return plain
    return fused[0]


@torch.inference_mode()
def gain(dtype: torch.dtype, *, width: int = 512, tokens: int = 256, rounds: int = 7) -> float:
    """How many times as fast as PyTorch's own kernels oneDNN's are, on one core of a CPU.

    The best of `rounds` in processor time, which other processes disturb least.
    """
    # Numbers of its own: a training that comes here first must not find others at hand for it.
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x, gate = draw(tokens, width).to(dtype), draw(tokens, 4 * width).to(dtype)
    weight = draw(4 * width, width).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = []
        for kernels in (PyTorchKernels(), OneDNNKernels()):
            packed = kernels.pack(weight)
            best.append(min(_seconds(kernels, x, packed, gate) for _ in range(rounds)))
    finally:
        torch.set_num_threads(threads)
    return best[0] / best[1]


def _seconds(kernels: LinearKernels, x: Tensor, packed: Tensor, gate: Tensor) -> float:
    clock = time.thread_time()
    kernels.times(x, packed, gate)
    return time.thread_time() - clock


@torch.inference_mode()
def _sound(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators exist here and agree with PyTorch's."""
    plain, fused = PyTorchKernels(), OneDNNKernels()
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(33, 64, generator=generator).to(dtype) for _ in range(2))
    weight, bias = torch.randn(64, 64, generator=generator).to(dtype), torch.ones(64, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    try:
        packed = fused.pack(weight)
        pairs = [
            *(
                (fused.linear(x, packed, bias, a), plain.linear(x, weight, bias, a))
                for a in ("none", "swish", "gelu")
            ),
            (fused.times(x, packed, other), plain.times(x, weight, other)),
            (fused.plus(x, packed, bias, other), plain.plus(x, weight, bias, other)),
        ]
    # An operator that is absent, or knows other arguments in this version of PyTorch.
    except (RuntimeError, AttributeError, TypeError):
        return False
    return all(bool((a - b).abs().max() <= tolerance) for a, b in pairs)
