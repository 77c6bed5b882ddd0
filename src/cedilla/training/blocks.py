"""How a model's blocks are run in training: compiled, or computed twice to save memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor, nn

from cedilla.errors import InputError
from cedilla.models.hybrid import Hybrid
from cedilla.models.nucleotide_transformer import Encoder, NucleotideTransformer
from cedilla.models.rotary import Angles

CPU = torch.device("cpu")
# Tensors of the model's width that the backward pass of one layer wants, per token, about.
ACTIVATIONS = 20
# The same of a residual convolution, and of a hybrid's stem and last LayerNorm together.
CONVOLUTION_ACTIVATIONS = 4


def prepare_blocks(
    encoder: nn.Module | None, device: torch.device, *, checkpointing: bool, compiled: bool
) -> None:
    """Switch gradient checkpointing and compilation on where they are asked for, in place.

    A block is compiled by itself: all blocks share one compilation, and weights keep their names.
    Raises :class:`InputError` for what has no Transformer blocks (None where nothing is trained
    by gradients), and where `device` lacks what compiling needs.
    """
    if not (checkpointing or compiled):
        return
    trunk = _trunk(encoder)
    if trunk is None:
        what = "of a model without Transformer blocks"
        mend = "leave them out, or take a language model"
        raise InputError.one("--gradient-checkpointing and --compile", what, mend)
    trunk.gradient_checkpointing = checkpointing
    if compiled:
        _refuse_without_compiler(device)
        for block in trunk.blocks:
            block.forward = _compiled(block)


def activations_kept(encoder: nn.Module) -> int:
    """Tensors of the model's width that training keeps per token for the gradient, about."""
    layers: int = encoder.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    trunk = _trunk(encoder)
    recomputed = trunk is not None and trunk.gradient_checkpointing
    in_blocks = layers + ACTIVATIONS if recomputed else layers * ACTIVATIONS
    if isinstance(trunk, Hybrid):
        config = trunk.config
        share = config.block_size / config.hidden_size / config.stride
        return round(in_blocks * share) + len(config.dilations) * CONVOLUTION_ACTIVATIONS
    return in_blocks


def _trunk(encoder: nn.Module | None) -> Encoder | Hybrid | None:
    """The part of a model that has its Transformer blocks, if it has any."""
    if isinstance(encoder, NucleotideTransformer):
        return encoder.esm
    return encoder if isinstance(encoder, Hybrid) else None


def _compiled(block: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The forward pass of a block, compiled once for all blocks, batches and lengths.

    A batch of one sequence, and prediction, are compilations of their own.
    """
    # Dropout draws what it draws without compiling, and on a CPU draws it faster.
    call = torch.compile(block.forward, options={"fallback_random": True})

    def forward(
        x: Tensor, keys: Tensor | None, rotary: Angles | None, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        B, L, _ = x.size()
        if keys is None:  # what is compiled with a mask serves batches with and without pads
            keys = x.new_ones(B, 1, 1, L, dtype=torch.bool)
        # Marked by hand: `dynamic=True` takes a batch as large as a head for the head's size, and
        # compiles the next batch anew.
        _mark(x, 0, 1)
        _mark(keys, 0, 3)
        for angles in rotary or ():
            _mark(angles, 0)
        found: tuple[Tensor, Tensor | None] = call(x, keys, rotary, want_weights)
        return found

    return forward


def _mark(tensor: Tensor, *dimensions: int) -> None:
    for dimension in dimensions:
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def _refuse_without_compiler(device: torch.device) -> None:
    """Compile the smallest function there is, so that what is missing is said before training."""

    def plus_one(x: Tensor) -> Tensor:
        return x + 1

    try:
        torch.compile(plus_one)(torch.zeros(2, device=device))
    except Exception as error:
        # Backends raise dozens of types: no compiler, no headers of Python, no Triton.
        cause = str(error).strip().splitlines()[0]
        needed = "a C++ compiler (g++, or name one in $CXX)" if device.type == "cpu" else "Triton"
        mend = f"install {needed}, or leave it out"
        raise InputError.one("--compile", f"cannot compile: {cause}", mend) from error
