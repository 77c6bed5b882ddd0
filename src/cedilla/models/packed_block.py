"""One Transformer block on the tokens of several sequences laid end to end: no pads, no mask.

Notable about it:

- linear layers see all tokens (T, D) at once, attention one sequence at a time;
- query, key and value are one product; the queries' scale is in its weights;
- rotary positions turn neighbours instead of halves, so that a rotation is one product of complex
  numbers: the rows of the query and key weights are put in that order, which changes no score;
- on a CPU attention is a matrix product, powers of 2 and another product, a few heads at a time so
  that scores stay in the cache; the powers need no maximum taken off unless scores could be large;
- the residual stream, LayerNorm and the rotary angles are float32 in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cedilla.models.linear_kernels import LinearKernels
from cedilla.models.nucleotide_transformer import Attention, Block, NTConfig

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch before 2.10
    varlen_attn = None  # type: ignore[assignment]

# Scores are powers of 2 here, so that softmax(s ln 2) is what a kernel of its own must compute.
LN2 = math.log(2.0)
SAFE_EXPONENT = 100.0  # 2^100 times a few thousand keys stays within float32 and bfloat16
SCORES_IN_CACHE = 1_500_000
FUSED_FROM = 640  # tokens from which PyTorch's fused float32 attention is the faster one on a CPU


@dataclass(frozen=True, slots=True)
class Packing:
    """Where sequences lie among T tokens: `starts` (n + 1,), of which the last is T.

    angles: cos + i sin (T, 1, head size / 2) of each token's position, or None without rotary
    positions. offsets: `starts` as int32 on the device.
    """

    starts: Sequence[int]
    angles: Tensor | None
    offsets: Tensor

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last + 1 token of each sequence."""
        return list(pairwise(self.starts))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(end - start for start, end in self.spans)


class PackedBlock:
    """The weights of a block, packed, and its forward pass on x (T, D) float32."""

    def __init__(
        self,
        block: Block,
        config: NTConfig,
        kernels: LinearKernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _refuse_adapters(block)

        def packed(*weights: Tensor) -> Tensor:
            weight = torch.cat(weights) if len(weights) > 1 else weights[0]
            return kernels.pack(weight.detach().to(device, dtype))

        def bias(*biases: Tensor | None) -> Tensor | None:
            present = [b for b in biases if b is not None]
            return torch.cat(present).detach().to(device, dtype) if present else None

        self.config, self.kernels, self.dtype = config, kernels, dtype
        self.norms = [_norm(n, device) for n in (block.attention.LayerNorm, block.LayerNorm)]
        (wq, bq), (wk, bk), (wv, bv) = _query_key_value(block, config)
        self.qkv, self.qkv_bias = packed(wq, wk, wv), bias(bq, bk, bv)
        out, wide, narrow = (
            cast(nn.Linear, part["dense"])
            for part in (block.attention.output, block.intermediate, block.output)
        )
        self.out, self.out_bias = packed(out.weight), bias(out.bias)
        self.wide = [packed(w) for w in wide.weight.chunk(2 if config.gated else 1)]
        self.wide_bias = bias(wide.bias)
        self.narrow, self.narrow_bias = packed(narrow.weight), bias(narrow.bias)

    def __call__(self, x: Tensor, packing: Packing) -> Tensor:
        h = self._normalise(x, 0)
        qkv = self.kernels.linear(h, self.qkv, self.qkv_bias)
        x = self._add(self._attend(qkv, packing), self.out, self.out_bias, x)
        h = self._normalise(x, 1)
        if self.config.gated:
            gate = self.kernels.linear(h, self.wide[0], None, "swish")
            h = self.kernels.times(h, self.wide[1], gate)
        else:
            h = self.kernels.linear(h, self.wide[0], self.wide_bias, "gelu")
        return self._add(h, self.narrow, self.narrow_bias, x)

    def _normalise(self, x: Tensor, which: int) -> Tensor:
        weight, bias = self.norms[which]
        h = F.layer_norm(x, x.shape[-1:], weight, bias, self.config.layer_norm_eps)
        return h.to(self.dtype)

    def _add(self, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """x + h Wᵀ + b, in float32."""
        if self.dtype == torch.float32:
            return self.kernels.plus(h, weight, bias, x)
        return x + self.kernels.linear(h, weight, bias)

    def _attend(self, qkv: Tensor, packing: Packing) -> Tensor:
        """Attention within each sequence (T, D) from queries, keys and values (T, 3 D)."""
        T, D = len(qkv), self.config.hidden_size
        H, size = self.config.num_attention_heads, self.config.head_size
        qk = qkv[:, : 2 * D].float()  # a view in float32, a copy in less
        if packing.angles is not None:
            pairs = torch.view_as_complex(qk.unflatten(-1, (2 * H, size // 2, 2)))
            pairs.mul_(packing.angles)
        qk = qk.unflatten(-1, (2, H, size))
        v = qkv[:, 2 * D :].view(T, H, size)
        if qkv.device.type == "cpu":
            return _attend_on_cpu(qk, v, packing).view(T, D)
        return _attend_on_gpu(qk, v, packing).reshape(T, D)


def _norm(norm: nn.LayerNorm, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(p.detach().to(device, torch.float32) for p in (norm.weight, norm.bias))  # type: ignore[return-value]


def _refuse_adapters(block: Block) -> None:
    """An adapter's wrapper also has a `weight`, which is not all that it computes."""
    plain = (nn.Linear, nn.LayerNorm, nn.ModuleDict, Attention, Block)
    if any(type(part) not in plain for part in block.modules()):
        raise TypeError("the model carries adapters; merge them into its weights first")


def _query_key_value(block: Block, config: NTConfig) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of query, key and value, the first two in rotary pairs, the first scaled."""
    layers = cast(Mapping[str, nn.Linear], block.attention.self)
    order = torch.arange(config.hidden_size)
    if config.rotary:
        order = order.view(-1, 2, config.head_size // 2).transpose(1, 2).reshape(-1)
    order = order.to(layers["query"].weight.device)
    scale = 1.0 / (LN2 * math.sqrt(config.head_size))
    query, key, value = (layers[name] for name in ("query", "key", "value"))
    return [
        # In float32, or a model in less would be rounded once more.
        (query.weight[order].float() * scale, query.bias[order].float() * scale),
        (key.weight[order], key.bias[order]),
        (value.weight, value.bias),
    ]


def _attend_on_cpu(qk: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """qk (T, 2, H, size) float32 and v (T, H, size) to (T, H, size), in the type of v."""
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    # |q·k| ≤ |q| |k| bounds every score of these sequences, by head.
    largest = torch.linalg.vector_norm(qk, dim=-1).amax(0)
    limit = SAFE_EXPONENT if v.dtype != torch.float16 else 0.0
    safe = bool((largest[0] * largest[1]).max() < limit)
    for start, end in packing.spans:
        q, k, values, out = (
            part.transpose(0, 1)
            for part in (qk[start:end, 0], qk[start:end, 1], v[start:end], y[start:end])
        )  # each (H, L, size)
        if v.dtype == torch.float32 and end - start >= FUSED_FROM:
            out[None] = F.scaled_dot_product_attention(q[None], k[None], values[None], scale=LN2)
            continue
        if v.dtype != torch.float32:
            boxes = v.new_empty(3, *q.shape)
            for box, part in zip(boxes, (q, k, values), strict=True):
                box.copy_(part)
            q, k, values = boxes
        _powers_of_two(q, k, values, out, safe)
    return y


def _powers_of_two(q: Tensor, k: Tensor, v: Tensor, out: Tensor, safe: bool) -> None:
    """softmax(q kᵀ ln 2) v of every head into `out`; all are (H, L, size)."""
    H, L, _ = q.shape
    step = min(H, max(1, SCORES_IN_CACHE // (L * L)))
    scores = q.new_empty(step, L, L)
    for first in range(0, H, step):
        heads = slice(first, min(first + step, H))
        p = scores[: heads.stop - first]
        torch.bmm(q[heads], k[heads].transpose(1, 2), out=p)
        if not safe:
            p -= p.amax(-1, keepdim=True)
        p.exp2_()
        total = p.sum(-1, keepdim=True)
        torch.div(torch.bmm(p, v[heads]), total, out=out[heads])


def _attend_on_gpu(qk: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """As on a CPU: flash attention over unequal lengths where the GPU has it, else padded."""
    if varlen_attn is None or not _has_flash(v):
        q, k = qk.to(v.dtype).unbind(1)
        return attend_padded(q, k, v, packing)
    # Its own scale is 1 / √size; PyTorch 2.10 takes no other.
    qk[:, 0] *= LN2 * math.sqrt(v.shape[-1])
    q, k = qk.to(v.dtype).unbind(1)
    offsets, longest = packing.offsets, packing.longest
    y: Tensor = varlen_attn(q, k, v, offsets, offsets, longest, longest)  # type: ignore[assignment]
    return y


def _has_flash(v: Tensor) -> bool:
    half = v.dtype in (torch.float16, torch.bfloat16)
    fits = v.shape[-1] % 8 == 0 and v.shape[-1] <= 256
    return half and fits and v.is_cuda and torch.cuda.get_device_capability(v.device) >= (8, 0)


def attend_padded(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Attention within sequences (T, H, size) by padding them to the longest: for older GPUs."""
    n, longest = len(packing.spans), packing.longest
    starts = packing.offsets.long()
    lengths = starts.diff()
    inside = torch.arange(longest, device=q.device) < lengths[:, None]  # (n, longest)
    padded = [t.new_zeros(n, longest, *t.shape[1:]) for t in (q, k, v)]
    for box, tokens in zip(padded, (q, k, v), strict=True):
        box[inside] = tokens
    q, k, v = (box.transpose(1, 2) for box in padded)  # each (n, H, longest, size)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=inside[:, None, None], scale=LN2)
    return y.transpose(1, 2)[inside]
