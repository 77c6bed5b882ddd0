"""An encoder cut in two: the frozen layers below all that is trained, and the rest."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cedilla.dna.tokenizer import pad
from cedilla.models.families import prepare
from cedilla.models.hybrid import Hybrid
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.training.adapters import BEHIND_BLOCKS, OUTPUT_LAYER
from cedilla.training.precision import Precision

Shape = tuple[int, int]
Lower = Callable[[Sequence[np.ndarray]], list[list[Tensor]]]
_BLOCK = re.compile(r"(?:esm\.)?encoder\.layer\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Split(ABC):
    """An encoder cut in two: layers without anything trained in or below them, and the rest.

    What stands between is one or more arrays (n, width) a sequence.

    config: the encoder's. blocks: how many it has. first: the number of the lowest one above the
    cut, or `blocks` where all of the encoder lies below it.
    """

    config: Any
    blocks: int
    first: int

    @property
    def whole(self) -> bool:
        """Whether all of the encoder lies below the cut."""
        return self.first == self.blocks

    @abstractmethod
    def shapes(self, tokens: int) -> list[Shape]:
        """The arrays of a sequence of so many tokens."""

    @abstractmethod
    def lower(self, encoder: Any, precision: Precision) -> Lower:
        """The layers below the cut: rows of token ids (L_i,) to the arrays of each, on the CPU."""

    @abstractmethod
    def upper(self, encoder: Any, arrays: Sequence[Tensor], mask: Tensor) -> Tensor:
        """The last hidden state (B, L, D) of padded arrays (B, n, width); mask (B, L)."""

    def is_below(self, name: str) -> bool:
        """Whether the weight of that name in the encoder works below the cut."""
        if name.startswith(OUTPUT_LAYER):
            return False
        block = _BLOCK.match(name)
        if block:
            return int(block[1]) < self.first
        return self.whole or not any(f".{part}." in f".{name}" for part in BEHIND_BLOCKS)

    def numbers(self, tokens: int) -> int:
        """In the arrays of a sequence of so many tokens, all together."""
        return sum(n * width for n, width in self.shapes(tokens))


class TransformerSplit(Split):
    """Of a Nucleotide Transformer: one hidden state a token."""

    def shapes(self, tokens: int) -> list[Shape]:
        return [(tokens, self.config.hidden_size)]

    def lower(self, encoder: Any, precision: Precision) -> Lower:
        if self.whole:
            return _predictor(encoder, precision, -1)
        return _predictor(_first_blocks(encoder, self.first), precision, self.first)

    def upper(self, encoder: Any, arrays: Sequence[Tensor], mask: Tensor) -> Tensor:
        if self.whole:
            return arrays[0]
        hidden: Tensor = encoder.esm.above(arrays[0], mask, self.first)
        return hidden


class HybridSplit(Split):
    """Of a hybrid: what the convolutions give a base, and what enters a block; or the last state.

    The first two begin behind ``<cls>``.
    """

    def shapes(self, tokens: int) -> list[Shape]:
        config, bases = self.config, tokens - 1
        if self.whole:
            return [(tokens, config.hidden_size)]
        return [(bases, config.hidden_size), (-(-bases // config.stride), config.block_size)]

    def lower(self, encoder: Any, precision: Precision) -> Lower:
        if self.whole:
            return _predictor(encoder, precision, -1)
        device = next(encoder.parameters()).device

        def run(rows: Sequence[np.ndarray]) -> list[list[Tensor]]:
            ids, mask = pad(rows)
            with torch.no_grad(), precision.autocast():
                padded = encoder.below(ids.to(device), mask.to(device), self.first)
            padded = [array.float().cpu() for array in padded]
            return [
                [array[i, :n] for array, (n, _) in zip(padded, self.shapes(len(row)), strict=True)]
                for i, row in enumerate(rows)
            ]

        return run

    def upper(self, encoder: Any, arrays: Sequence[Tensor], mask: Tensor) -> Tensor:
        if self.whole:
            return arrays[0]
        hidden: Tensor = encoder.above(*arrays, mask, self.first)
        return hidden


def split_encoder(encoder: nn.Module) -> Split | None:
    """The cut below the lowest parameter that is trained; None where nothing is worth keeping."""
    if isinstance(encoder, NucleotideTransformer):
        kind: type[Split] = TransformerSplit
        below: list[nn.Module] = [encoder.esm.embeddings]
        above = [encoder.esm.encoder["emb_layer_norm_after"]]
    elif isinstance(encoder, Hybrid):
        kind = HybridSplit
        below = [encoder.embeddings, encoder.stem, encoder.convolutions, encoder.shorten]
        above = [encoder.encoder["emb_layer_norm_after"], encoder.lengthen, encoder.last_norm]
        below += [encoder.methylation] if encoder.methylation is not None else []
    else:
        return None
    blocks = list(_blocks(encoder))
    if not blocks or any(_trained(part) for part in below):
        return None
    first = next((i for i, block in enumerate(blocks) if _trained(block)), len(blocks))
    if first == len(blocks) and any(_trained(part) for part in above):
        first -= 1
    # The embedding alone is as quickly computed as read.
    return kind(encoder.config, len(blocks), first) if first or kind is HybridSplit else None


def _first_blocks(encoder: NucleotideTransformer, number: int) -> NucleotideTransformer:
    """The model, with its own weights, as far as the first few blocks.

    Those above may carry adapters, and would be packed in vain. The configuration has one block
    more than there are, so that the hidden state of the last is not taken for the normalised one.
    """
    config = replace(encoder.config, num_hidden_layers=number + 1)
    with torch.device("meta"):
        part = NucleotideTransformer(config)
    part.esm.embeddings, part.lm_head = encoder.esm.embeddings, encoder.lm_head
    part.esm.encoder["layer"] = nn.ModuleList(islice(encoder.esm.blocks, number))
    part.esm.encoder["emb_layer_norm_after"] = encoder.esm.encoder["emb_layer_norm_after"]
    return part


def _predictor(encoder: Any, precision: Precision, layer: int) -> Lower:
    """The hidden state of a layer, by the means of inference."""
    name: Any = str(precision.dtype).removeprefix("torch.")
    predictor = prepare(encoder, precision=name, device=next(encoder.parameters()).device)
    return lambda rows: [[hidden[0]] for hidden in predictor.hidden(rows, [layer])]


def _blocks(encoder: Any) -> nn.ModuleList:
    trunk = encoder.esm if isinstance(encoder, NucleotideTransformer) else encoder
    blocks: nn.ModuleList = trunk.blocks
    return blocks


def _trained(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())
