"""Attention in training on a CPU: a few sequences at a time, and computed twice.

The maps of a batch are far larger than a cache: written to memory, read back in the backward pass
and allocated anew in every layer, they cost more than the products around them. A few sequences at
a time stay in the cache, and computing their maps again in the backward pass is cheaper than
keeping them. PyTorch's fused kernel does likewise, but its backward pass is slow on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cedilla.models.rotary import Angles

# Elements of the maps that are worked on at once.
ELEMENTS = 1 << 21


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, rotary: Angles | None, keys: Tensor | None
) -> Tensor:
    """softmax(q kᵀ / √head size) v (B, L, D) of projections (B, L, D), turned by `rotary` first.

    `keys` (B, 1, 1, L) is false on pads, which get no weight.
    """
    L = q.size(1)
    cos, sin = rotary or (q.new_ones(L, 1), q.new_zeros(L, 1))
    y: Tensor = _Attention.apply(q, k, v, heads, cos, sin, keys)
    return y


class _Attention(torch.autograd.Function):
    """Keeps the projections alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        heads, cos, sin, keys = how
        ctx.save_for_backward(q, k, v, cos, sin, keys)
        ctx.heads = heads
        y = torch.empty_like(v)
        for rows in _groups(q, heads):
            turned = _turned(q[rows], k[rows], heads, cos, sin)
            w = _maps(*turned, None if keys is None else keys[rows])
            _split(y[rows], heads).copy_(w @ _split(v[rows], heads))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, keys = ctx.saved_tensors
        heads, gradient = ctx.heads, gradients[0].to(v.dtype)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        scale = _scale(q, heads)
        for rows in _groups(q, heads):
            turned = _turned(q[rows], k[rows], heads, cos, sin)
            w = _maps(*turned, None if keys is None else keys[rows])
            dy = _split(gradient[rows], heads).contiguous()
            _split(dv[rows], heads).copy_(w.mT @ dy)
            dw = dy @ _split(v[rows], heads).mT
            ds = torch._softmax_backward_data(dw, w, -1, w.dtype)
            # The transpose of a turn is the turn back.
            _turn(ds @ turned[1], cos * scale, -sin * scale, _split(dq[rows], heads))
            _turn(ds.mT @ turned[0], cos, -sin, _split(dk[rows], heads))
        return dq, dk, dv, None, None, None, None


def _groups(q: Tensor, heads: int) -> Iterator[slice]:
    """As many sequences at a time as have `ELEMENTS` in their maps, one at least."""
    B, L, _ = q.size()
    size = max(1, ELEMENTS // (heads * L * L))
    return (slice(start, start + size) for start in range(0, B, size))


def _split(x: Tensor, heads: int) -> Tensor:
    """x (B, L, D) as (B, H, L, head size), the same memory."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scale(q: Tensor, heads: int) -> float:
    return math.sqrt(heads / q.size(-1))


def _turned(q: Tensor, k: Tensor, heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys (B, H, L, head size), turned."""
    B, L, D = q.size()
    both = q.new_empty(2, B, heads, L, D // heads)
    scale = _scale(q, heads)
    _turn(_split(q, heads), cos * scale, sin * scale, both[0])
    _turn(_split(k, heads), cos, sin, both[1])
    return both[0], both[1]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Turn the pairs (i, i + head size / 2) of x (B, H, L, head size) by their angles, into `out`.

    In the precision of the angles, whatever that of x.
    """
    half = x.size(-1) // 2
    x = x.to(cos.dtype)
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, :half], sin[:, :half]
    out[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    out[..., half:] = torch.addcmul(second * cos, first, sin)


def _maps(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    """softmax(q kᵀ) (B, H, L, L), zero on pads; the softmax itself sums in float32."""
    scores = q @ k.mT
    if keys is not None:
        scores.masked_fill_(~keys, -torch.inf)
    return scores.softmax(dim=-1)
