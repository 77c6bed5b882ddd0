"""Attention in training on a CPU: a few sequences at a time, and computed twice.

The maps of a batch are far larger than a cache: written to memory, read back in the backward pass
and allocated anew in every layer, they cost more than the products around them. A few sequences at
a time stay in the cache, and computing their maps again in the backward pass is cheaper than
keeping them. PyTorch's fused kernel does likewise, but its backward pass is slow on a CPU.

A softmax in bfloat16 is slow there too: these are powers of 2, from which the highest score of a
row is taken off only where scores are so large that it matters.
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
# 2^100 times a few thousand keys stays within float32 and bfloat16.
SAFE_EXPONENT = 100.0


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, rotary: Angles | None, keys: Tensor | None
) -> Tensor:
    """softmax(q kᵀ / √head size) v (B, L, D) of projections (B, L, D), turned by `rotary` first.

    `keys` (B, 1, 1, L) is false on pads, which get no weight.
    """
    cos, sin = rotary or no_turn(q)
    y: Tensor = _Attention.apply(q, k, v, heads, cos, sin, keys)
    return y


def no_turn(q: Tensor) -> Angles:
    """Angles of zero, for projections (B, L, D) of a model without rotary positions."""
    shape = (q.size(1), 1)
    return q.new_ones(shape), q.new_zeros(shape)


class _Attention(torch.autograd.Function):
    """Keeps the turned projections alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *how: Any) -> Tensor:
        heads, cos, sin, keys = how
        y, turned = attention(q, k, v, heads=heads, rotary=(cos, sin), keys=keys)
        ctx.save_for_backward(turned, cos, sin, keys)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        turned, cos, sin, keys = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(gradients[0], dtype=turned.dtype) for _ in range(3))
        attention_backward(gradients[0], turned, (dq, dk, dv), rotary=(cos, sin), keys=keys)
        return dq, dk, dv, None, None, None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, rotary: Angles, keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`attend`, without a gradient; and (3, B, H, L, head size) that one will want."""
    B, L, D = q.size()
    cos, sin = rotary
    # In units in which the softmax is a power of 2.
    scale = math.sqrt(heads / D) / math.log(2.0)
    turned = q.new_empty(3, B, heads, L, D // heads)
    y = q.new_empty(B, L, D)
    for rows in _groups(turned):
        _turn(_split(q[rows], heads), cos * scale, sin * scale, turned[0, rows])
        _turn(_split(k[rows], heads), cos, sin, turned[1, rows])
        turned[2, rows] = _split(v[rows], heads)
        p, total = _powers(turned[:, rows], None if keys is None else keys[rows])
        torch.div(p @ turned[2, rows], total, out=_split(y[rows], heads))
    return y, turned


def attention_backward(
    dy: Tensor,
    turned: Tensor,
    out: tuple[Tensor, Tensor, Tensor],
    *,
    rotary: Angles,
    keys: Tensor | None,
) -> None:
    """The gradients of :func:`attention` from that of its result (B, L, D), into `out` (B, L, D).

    `out` is the queries', the keys' and the values', in this order.
    """
    heads, size = turned.size(2), turned.size(-1)
    (cos, sin), scale = rotary, size**-0.5
    for rows in _groups(turned):
        q, k, v = turned[:, rows]
        w, total = _powers(turned[:, rows], None if keys is None else keys[rows])
        w *= total.reciprocal_()
        gradient = _split(dy[rows], heads).to(w.dtype, memory_format=torch.contiguous_format)
        dq, dk, dv = (_split(part[rows], heads) for part in out)
        dv.copy_(w.mT @ gradient)
        ds = torch._softmax_backward_data(gradient @ v.mT, w, -1, w.dtype)
        # The transpose of a turn is the turn back. The queries' scale is in q, but not in k.
        _turn(ds @ k, cos * scale, -sin * scale, dq)
        back = math.log(2.0)
        _turn(ds.mT @ q, cos * back, -sin * back, dk)


def _groups(turned: Tensor) -> Iterator[slice]:
    """As many sequences at a time as have `ELEMENTS` in their maps, one at least."""
    _, B, heads, L, _ = turned.size()
    size = max(1, ELEMENTS // (heads * L * L))
    return (slice(start, start + size) for start in range(0, B, size))


def _split(x: Tensor, heads: int) -> Tensor:
    """x (B, L, D) as (B, H, L, head size), the same memory."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


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


def _powers(turned: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """2^(q kᵀ) (B, H, L, L), zero on pads, and their sums (B, H, L, 1): the softmax's two parts."""
    p = turned[0] @ turned[1].mT
    low, high = torch.aminmax(p)
    if keys is not None:
        p.masked_fill_(~keys, -torch.inf)
    if max(-low, high) > SAFE_EXPONENT:
        p -= p.amax(-1, keepdim=True)
    p.exp2_()
    return p, p.sum(-1, keepdim=True)
