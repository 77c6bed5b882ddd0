"""A Transformer block whose own weights are frozen, in bfloat16 on a CPU: adapters alone learn.

Notable about it:

- the frozen weights are rounded and packed once, for the forward and for the backward pass, where
  autocast would round them at every step; nothing is computed for their gradients;
- query, key and value are one product, and so are their gradients; what LoRA adds to a product
  goes into it while it is still in registers, rounded once;
- dropout is a bitwise and: drawing a mask by PyTorch's costs as much as a small product;
- the residual stream, LayerNorm and the rotary angles are float32, as without this file;
- what the backward pass can compute again cheaper than keep, it does not keep.

Numbers are those of the plain block but for the rounding of bfloat16, dropout draws others. The
frozen weights themselves stay in the model, untouched. LoRA: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cedilla.models.linear_kernels import LinearKernels, usable
from cedilla.models.rotary import Angles
from cedilla.models.training_attention import attention, attention_backward, no_turn

if TYPE_CHECKING:
    from cedilla.models.nucleotide_transformer import Block

CPU = torch.device("cpu")
DTYPE = torch.bfloat16
BITS = 1 << 15  # random bits that decide over one element in dropout


@dataclass(frozen=True, slots=True)
class Adapter:
    """What LoRA adds to a linear layer: scale · dropout(x) Aᵀ Bᵀ, A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float
    dropout: float


@dataclass(frozen=True, slots=True)
class Product:
    """Linear layers with one input, side by side, as one product with a packed weight."""

    kernels: LinearKernels
    forward: Tensor
    backward: Tensor
    bias: Tensor | None
    widths: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[nn.Linear], kernels: LinearKernels) -> Product:
        """Round and pack weights (out, in) and biases (out,)."""
        weight = torch.cat([layer.weight.detach() for layer in layers]).to(DTYPE)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        return cls(
            kernels,
            kernels.pack(weight),
            kernels.pack(weight.T.contiguous()),
            torch.cat(biases).to(DTYPE) if biases else None,
            tuple(layer.out_features for layer in layers),
        )


class Adapted:
    """A product with its adapters (None where a layer has none), in one step of training."""

    def __init__(
        self, product: Product, adapters: Sequence[Adapter | None], *, training: bool
    ) -> None:
        self.product, self.adapters = product, [a for a in adapters if a is not None]
        self.dropout = self.adapters[0].dropout if self.adapters and training else 0.0
        if not self.adapters:
            return
        self.scale = 1.0 / (1.0 - _share(self.dropout))
        self.A = torch.cat([adapter.A for adapter in self.adapters]).to(DTYPE)
        # All B in one matrix (r, out), each in the rows and the columns of its own layer.
        self.B = self.A.new_zeros(len(self.A), sum(product.widths))
        for adapter, columns, rows in zip(self.adapters, *self._places(adapters), strict=True):
            self.B[rows, columns] = adapter.B.T * (adapter.scale * self.scale)

    def _places(self, adapters: Sequence[Adapter | None]) -> tuple[list[slice], list[slice]]:
        """Columns of the output and rows of A that belong to each adapter."""
        self.columns, self.rows = [], []
        column = row = 0
        for width, adapter in zip(self.product.widths, adapters, strict=True):
            if adapter is not None:
                self.columns.append(slice(column, column + width))
                self.rows.append(slice(row, row + len(adapter.A)))
                row += len(adapter.A)
            column += width
        return self.columns, self.rows

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Of x (T, in): the output (T, out), and what the backward pass wants.

        That is what came out of A (T, r), the mask of dropout, and x under it.
        """
        kernels, product = self.product.kernels, self.product
        if not self.adapters:
            return kernels.linear(x, product.forward, product.bias), [None, None, None]
        keep = _mask(x, self.dropout) if self.dropout else None
        x_kept = masked(x, keep)
        low = x_kept @ self.A.T
        y = kernels.plus(x, product.forward, product.bias, low @ self.B)
        return y, [low, keep, x_kept]

    def gradients(
        self, dy: Tensor, kept: Sequence[Tensor | None], *, wanted: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Of dy (T, out): the input's (T, in) if `wanted`, and A's and B's of each adapter."""
        kernels, product = self.product.kernels, self.product
        if not self.adapters:
            return kernels.linear(dy, product.backward, None) if wanted else None, []
        low, keep, x_kept = cast(tuple[Tensor, Tensor | None, Tensor], kept)
        dlow = self.B @ dy.T  # (r, T), which oneDNN computes faster than (T, r)
        dA, dB = dlow @ x_kept, low.T @ dy
        found = []
        for adapter, columns, rows in zip(self.adapters, self.columns, self.rows, strict=True):
            found.append(dA[rows].to(adapter.A.dtype))
            found.append(dB[rows, columns].T.to(adapter.B.dtype) * (adapter.scale * self.scale))
        if not wanted:
            return None, found
        return kernels.plus(dy, product.backward, None, masked(dlow.T @ self.A, keep)), found


class FrozenBlock:
    """The packed weights of a block, and its pass over x (B, L, D) with its adapters of now."""

    def __init__(self, block: Block, key: object) -> None:
        # Not by measurement, as in inference: the same command is to give the same numbers.
        kernels = usable(DTYPE, CPU)[-1]
        self.key, self.heads, self.gated = key, block.attention.heads, block.gated
        self.norms = [block.attention.LayerNorm, block.LayerNorm]
        self.products = [Product.of(group, kernels) for group in _groups(block)]

    def __call__(
        self,
        x: Tensor,
        adapters: list[list[Adapter | None]],
        keys: Tensor | None,
        rotary: Angles | None,
        training: bool,
    ) -> Tensor:
        flat = [t for group in adapters for a in group if a is not None for t in (a.A, a.B)]
        with torch.autocast("cpu", enabled=False):
            y: Tensor = _Frozen.apply(
                x, keys, *(rotary or no_turn(x)), self, adapters, training, *flat
            )
        return y

    def normalise(self, x: Tensor, which: int) -> tuple[Tensor, Tensor, Tensor]:
        """LayerNorm of x (T, D) in bfloat16, the means and the reciprocal deviations."""
        n = self.norms[which]
        h, mean, rstd = torch.native_layer_norm(x, [x.size(-1)], n.weight, n.bias, n.eps)
        return h.to(DTYPE), mean, rstd

    def normalise_backward(self, dh: Tensor, which: int, *saved: Tensor) -> Tensor:
        """The gradient of x from that of the LayerNorm's output; `saved`: x, means, deviations."""
        n, (x, mean, rstd) = self.norms[which], saved
        dx: Tensor = torch.ops.aten.native_layer_norm_backward(
            dh.float(), x, [x.size(-1)], mean, rstd, n.weight, n.bias, [True, False, False]
        )[0]
        return dx

    def activate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The feed-forward layer's inner values (T, F) of u, and its activation alone."""
        if not self.gated:
            t = F.gelu(u)
            return t, t
        gate, value = u.chunk(2, dim=-1)
        t = F.silu(gate)
        return t * value, t

    def activate_backward(self, ds: Tensor, u: Tensor, t: Tensor) -> Tensor:
        """The gradient of u."""
        if not self.gated:
            du: Tensor = torch.ops.aten.gelu_backward(ds, u)
            return du
        gate, value = u.chunk(2, dim=-1)
        du = torch.empty_like(u)
        dgate, dvalue = du.chunk(2, dim=-1)
        torch.mul(ds, t, out=dvalue)
        torch.ops.aten.silu_backward.grad_input(ds * value, gate, grad_input=dgate)
        return du


class _Frozen(torch.autograd.Function):
    """The pass of a block, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *how: Any) -> Tensor:
        keys, cos, sin, block, adapters, training, *_ = how
        qkv, out, wide, narrow = (
            Adapted(product, some, training=training)
            for product, some in zip(block.products, adapters, strict=True)
        )
        B, L, D = x.size()
        x0 = x.reshape(B * L, D)
        h, *norm = block.normalise(x0, 0)
        projected, kept_qkv = qkv(h)
        y, turned = attention(
            *projected.view(B, L, 3 * D).chunk(3, dim=-1),
            heads=block.heads,
            rotary=(cos, sin),
            keys=keys,
        )
        y = y.view(B * L, D)
        o, kept_out = out(y)
        x1 = x0 + o.float()
        g, *norm1 = block.normalise(x1, 1)
        u, kept_wide = wide(g)
        s, t = block.activate(u)
        z, kept_narrow = narrow(s)
        kept_narrow[2] = None  # the largest of all, and computed again from u and t
        kept = [*kept_qkv, *kept_out, *kept_wide, *kept_narrow]
        ctx.save_for_backward(keys, cos, sin, turned, u, t, x0, *norm, x1, *norm1, *kept)
        ctx.block, ctx.products = block, (qkv, out, wide, narrow)
        return (x1 + z.float()).view(B, L, D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved: Iterator[Any] = iter(ctx.saved_tensors)
        keys, cos, sin, turned, u, t = islice(saved, 6)
        norm, norm1, kept_qkv, kept_out, kept_wide, kept_narrow = (
            list(islice(saved, 3)) for _ in range(6)
        )
        block, (qkv, out, wide, narrow) = ctx.block, ctx.products
        B, L, D = gradients[0].size()
        dx = gradients[0].reshape(B * L, D)
        if narrow.adapters:
            s = t * u.chunk(2, dim=-1)[1] if block.gated else t
            kept_narrow[2] = masked(s, kept_narrow[1])
        ds, of_narrow = narrow.gradients(dx.to(DTYPE), kept_narrow)
        du = block.activate_backward(ds, u, t)
        dg, of_wide = wide.gradients(du, kept_wide)
        dx = dx + block.normalise_backward(dg, 1, *norm1)
        dy, of_out = out.gradients(dx.to(DTYPE), kept_out)
        dqkv = dy.new_empty(B, L, 3 * D)
        attention_backward(
            dy.view(B, L, D), turned, dqkv.chunk(3, dim=-1), rotary=(cos, sin), keys=keys
        )
        wanted = ctx.needs_input_grad[0]
        dh, of_qkv = qkv.gradients(dqkv.view(B * L, 3 * D), kept_qkv, wanted=wanted)
        if wanted:
            dx = (dx + block.normalise_backward(dh, 0, *norm)).view(B, L, D)
        found = (*of_qkv, *of_out, *of_wide, *of_narrow)
        return dx if wanted else None, None, None, None, None, None, None, *found


_PACKED: WeakKeyDictionary[nn.Module, FrozenBlock] = WeakKeyDictionary()


def run_frozen(
    block: Block, x: Tensor, keys: Tensor | None, rotary: Angles | None
) -> Tensor | None:
    """The output (B, L, D) of a block on x (B, L, D), or None where this file does not serve.

    It serves under bfloat16 autocast on a CPU, where all of the block's own weights are frozen
    and its adapters, if there are some, are plain LoRA.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    if not (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == DTYPE
        and x.dtype == torch.float32
    ):
        return None
    adapters = _adapters(block)
    if adapters is None:
        return None
    key = _state(block)
    packed = _PACKED.get(block)
    if packed is None or packed.key != key:
        packed = _PACKED[block] = FrozenBlock(block, key)
    return packed(x, adapters, keys, rotary, block.training)


def _linears(block: Block) -> list[list[Any]]:
    """The linear layers, or what wraps them, that have an input in common."""
    names = ("query", "key", "value")
    return [
        [block.attention.self[name] for name in names],
        [block.attention.output["dense"]],
        [block.intermediate["dense"]],
        [block.output["dense"]],
    ]


def _groups(block: Block) -> list[list[nn.Linear]]:
    """The same, without their adapters."""
    return [[getattr(layer, "base_layer", layer) for layer in group] for group in _linears(block)]


def _state(block: Block) -> tuple[Any, ...]:
    """Changes when a weight does, or an adapter is folded in, which no tensor tells."""
    layers = [layer for group in _groups(block) for layer in group]
    weights = [w for layer in layers for w in (layer.weight, layer.bias) if w is not None]
    wrapped = (type(layer) for group in _linears(block) for layer in group)
    return (*wrapped, *((w.data_ptr(), w._version) for w in weights))


def _adapters(block: Block) -> list[list[Adapter | None]] | None:
    """Each layer's adapter; None where a weight is trained, or an adapter is not plain LoRA."""
    norms = (block.attention.LayerNorm, block.LayerNorm)
    if any(
        type(norm) is not nn.LayerNorm or any(p.requires_grad for p in norm.parameters())
        for norm in norms
    ):
        return None
    found = []
    for group in _linears(block):
        adapters = []
        for layer in group:
            plain, adapter = _adapter(layer)
            base = getattr(layer, "base_layer", layer)
            if not plain or any(p.requires_grad or p.is_inference() for p in base.parameters()):
                return None
            adapters.append(adapter)
        if len({a.dropout for a in adapters if a is not None}) > 1:
            return None
        found.append(adapters)
    return found


def _adapter(layer: Any) -> tuple[bool, Adapter | None]:
    """Whether a layer is a linear one, bare or with one plain LoRA adapter, and that adapter."""
    if type(layer) is nn.Linear:
        return True, None
    peft = sys.modules.get("peft.tuners.lora.layer")  # not there: nothing was adapted
    if peft is None or type(layer) is not peft.Linear or type(layer.base_layer) is not nn.Linear:
        return False, None
    if layer.disable_adapters or layer.merged:
        return False, None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.lora_variant or any(layer.lora_bias.values()):
        return False, None
    name = names[0]
    dropout = getattr(layer.lora_dropout[name], "p", 0.0)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return True, Adapter(a, b, float(layer.scaling[name]), float(dropout))


def _share(p: float) -> float:
    """The share of elements that dropout takes out, in whole `BITS`."""
    return round(p * BITS) / BITS


def _mask(x: Tensor, p: float) -> Tensor:
    """int8 of the shape of x: −1, all bits set, where dropout keeps, 0 where it takes out.

    PyTorch's generator gives a seed, and NumPy's fastest one, several times as fast, the bits.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    draw = np.random.Generator(np.random.SFC64(seed)).integers
    words = draw(-(2**63), 2**63 - 1, -(-x.numel() // 4), dtype=np.int64, endpoint=True)
    drawn = torch.from_numpy(words).view(torch.int16)[: x.numel()].view(x.shape) & (BITS - 1)
    # The sign of what is left, in all bits.
    return (round(p * BITS) - 1 - drawn).bitwise_right_shift_(15).to(torch.int8)


def masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """x in bfloat16 where `keep` is −1, zero elsewhere."""
    if keep is None:
        return x
    return (x.view(torch.int16) & keep.to(torch.int16)).view(DTYPE)
