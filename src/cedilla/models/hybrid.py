"""The hybrid model: convolutions over single bases, Transformer blocks on a shortened sequence.

k-mers shift by one base and change altogether; on short regulatory sequences models that read
single bases win. Notable about this one:

- a wide convolution over bases, the stem, then residual dilated convolutions in the form of
  BPNet (Avsec et al., Nature Genetics 2021), with a LayerNorm before each, so that pads change
  nothing; ReLU, and channels last in memory, which train several times faster on a CPU;
- `stride` bases at a time go on to v2 blocks of the Nucleotide Transformer (rotary positions,
  SwiGLU), whose output returns to every base beside what the convolutions gave: a U of one step;
- the output layer gives a distribution over bases at every base;
- an optional methylation channel, zero at the start: a base without a measured value adds nothing;
- ``<cls>`` is not read; its hidden state is the mean over the bases;
- strands are averaged in prediction, as for every model here: both give the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cedilla.dna.tokenizer import PAD, SPECIAL
from cedilla.models.convolution import convolve
from cedilla.models.nucleotide_transformer import Block, MaskedLMHead, NTConfig, Output
from cedilla.models.rotary import rotary_angles

MODEL_TYPE = "cedilla-hybrid"
_EMBEDDING = 16  # numbers per base that the stem reads


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """The shape of a hybrid model.

    Attributes
    ----------
    hidden_size:
        Width of the convolutions, and of the hidden states.
    stem_width, kernel_size:
        Bases that the stem reads at once, and each residual convolution.
    dilations:
        Of the residual convolutions, first to last.
    stride:
        Bases per position of the Transformer blocks.
    num_hidden_layers, block_size, num_attention_heads, intermediate_size:
        The blocks: how many, how wide, their heads, the width of their FFN.
    methylation:
        Whether there is a methylation channel.
    max_tokens:
        The longest input, ``<cls>`` included.

    Raises
    ------
    ValueError
        For a shape that cannot be built.
    """

    hidden_size: int = 128
    stem_width: int = 13
    kernel_size: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    stride: int = 4
    num_hidden_layers: int = 2
    block_size: int = 192
    num_attention_heads: int = 6
    intermediate_size: int = 512
    methylation: bool = False
    layer_norm_eps: float = 1e-5
    max_tokens: int = 100_001

    def __post_init__(self) -> None:
        even = {"stem_width": self.stem_width, "kernel_size": self.kernel_size}
        for name, width in even.items():
            if width < 1 or width % 2 == 0:
                raise ValueError(f"{name} {width} must be odd, so that it has a centre")
        if self.stride < 1 or any(d < 1 for d in self.dilations):
            raise ValueError("stride and dilations must be 1 at least")
        _ = self.blocks  # checks the heads

    @property
    def k(self) -> int:
        """Bases per token."""
        return 1

    @property
    def version(self) -> int:
        """Which special tokens the vocabulary begins with: those of v2."""
        return 2

    @property
    def vocab_size(self) -> int:
        """Special tokens, four bases as 1-mers, four bases and N as left-overs."""
        return len(SPECIAL[self.version]) + 4 + 5

    @property
    def blocks(self) -> NTConfig:
        """The Transformer blocks, as of a Nucleotide Transformer v2."""
        return NTConfig(
            hidden_size=self.block_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            layer_norm_eps=self.layer_norm_eps,
        )

    @property
    def last_layer(self) -> int:
        """The number of the last hidden state; 0 is that after the stem."""
        return len(self.dilations) + 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HybridConfig:
        """Read a ``config.json``. Unknown keys are refused, since they could change the model."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known - {"model_type"})
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        chosen = {key: values[key] for key in values.keys() & known}
        if "dilations" in chosen:
            chosen["dilations"] = tuple(chosen["dilations"])
        return cls(**chosen)


class Hybrid(nn.Module):
    """The masked language model over single bases: encoder and output layer."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        d, t = config.hidden_size, config.block_size
        self.embeddings = nn.Embedding(config.vocab_size, _EMBEDDING, padding_idx=PAD)
        self.methylation = nn.Linear(2, d, bias=False) if config.methylation else None
        self.stem = nn.Conv1d(_EMBEDDING, d, config.stem_width, padding=config.stem_width // 2)
        self.convolutions = nn.ModuleList(
            ResidualConvolution(config, dilation) for dilation in config.dilations
        )
        self.shorten = nn.Conv1d(d, t, config.stride, stride=config.stride)
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.encoder = nn.ModuleDict(
            {
                "layer": nn.ModuleList(
                    Block(config.blocks) for _ in range(config.num_hidden_layers)
                ),
                "emb_layer_norm_after": norm(t),
            }
        )
        self.lengthen = nn.Linear(t, d)
        self.last_norm = norm(d)
        # The output layer takes the width and the vocabulary from a configuration of blocks.
        self.lm_head = MaskedLMHead(
            replace(config.blocks, hidden_size=d, num_attention_heads=1, intermediate_size=d)
        )
        self.initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The Transformer blocks, first to last."""
        layers: nn.ModuleList = self.encoder["layer"]  # type: ignore[assignment]
        return layers

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as before pre-training; the methylation channel starts at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()
                module.weight[PAD].zero_()
        self.lm_head.bias.zero_()
        if self.methylation is not None:
            self.methylation.weight.zero_()

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        methylation: Tensor | None = None,
        *,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Output:
        """Run the model on token ids (B, L), as :meth:`encode` does, with the output layer.

        The attention maps (B, H, S, S) are over the shortened sequence, of `stride` bases each.
        """
        layers = range(self.config.last_layer + 1) if hidden_states else [self.config.last_layer]
        maps: list[Tensor] | None = [] if attentions else None
        states = self.states(ids, mask, methylation, layers=layers, maps=maps)
        last = states[-1]
        return Output(
            self.lm_head(last),
            last,
            tuple(states) if hidden_states else None,
            None if maps is None else tuple(maps),
        )

    def encode(
        self, ids: Tensor, mask: Tensor | None = None, methylation: Tensor | None = None
    ) -> Tensor:
        """The last hidden state (B, L, D).

        Parameters
        ----------
        ids:
            (B, L) tokens, ``<cls>`` first.
        mask:
            (B, L), true at tokens and false at pads; without one, pads are known by their id.
        methylation:
            (B, L) share of methylated molecules in [0, 1] at each token, NaN where it was not
            measured; for models with a methylation channel.

        Raises
        ------
        ValueError
            For methylation given to a model without a channel for it, or a batch without a base
            or with more tokens than the model takes.
        """
        return self.states(ids, mask, methylation, layers=[self.config.last_layer])[0]

    def states(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        methylation: Tensor | None = None,
        *,
        layers: Sequence[int],
        maps: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Hidden states (B, L, D) by number, in the order of `layers`.

        0 follows the stem, i convolution i, and `config.last_layer` the last LayerNorm. What lies
        behind the last one asked for is not computed. Each block's attention is added to `maps`.
        """
        if methylation is not None and self.methylation is None:
            raise ValueError("this model has no methylation channel")
        if not 1 < ids.size(1) <= self.config.max_tokens:
            longest = self.config.max_tokens
            raise ValueError(f"{ids.size(1)} tokens; the model takes from 2 to {longest}")
        mask = ids != PAD if mask is None else mask.to(torch.bool)
        on_cpu = ids.device.type == "cpu" and not torch.compiler.is_exporting()
        bases = mask[:, 1:]
        # Without pads there is nothing to keep at zero.
        real = None if on_cpu and bool(bases.all()) else bases.unsqueeze(-1)
        x = convolve(self.stem, _zeroed(self.embeddings(ids[:, 1:]), real))
        if self.methylation is not None and methylation is not None:
            x = x + self.methylation(_channel(methylation[:, 1:]))
        found = {0: x}
        for number, convolution in enumerate(self.convolutions[: max(layers)], start=1):
            x = convolution(x, real)
            found[number] = x
        if max(layers) == self.config.last_layer:
            x = x + self._over_blocks(x, real, maps) if len(self.blocks) else x
            found[self.config.last_layer] = self.last_norm(x)
        return [_with_cls(found[number], real) for number in layers]

    def below(self, ids: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """What the convolutions give for each base (B, L - 1, D), and what enters block number
        `first` for each position of the shortened sequence (B, S, block size)."""
        x = self.states(ids, mask, layers=[len(self.convolutions)])[0][:, 1:]
        real = mask[:, 1:, None].to(torch.bool)
        short = self._shortened(x, real)
        return x, self._through(short, real, range(first), None)

    def above(self, x: Tensor, short: Tensor, mask: Tensor, first: int) -> Tensor:
        """The last hidden state (B, L, D) of what :meth:`below` gives."""
        real = mask[:, 1:, None].to(torch.bool)
        blocks = range(first, len(self.blocks))
        back = self._lengthened(self._through(short, real, blocks, None), x.size(1))
        return _with_cls(self.last_norm(x + back), real)

    def _over_blocks(self, x: Tensor, real: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        """What the Transformer blocks add to x (B, L, D)."""
        blocks = range(len(self.blocks))
        return self._lengthened(
            self._through(self._shortened(x, real), real, blocks, maps), x.size(1)
        )

    def _shortened(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x (B, L, D) at one position for `stride` bases (B, S, block size)."""
        return convolve(self.shorten, F.pad(_zeroed(x, real), (0, 0, 0, self.config.stride - 1)))

    def _through(
        self, short: Tensor, real: Tensor | None, blocks: range, maps: list[Tensor] | None
    ) -> Tensor:
        """Some of the blocks on short (B, S, block size); `real` (B, L, 1) is that of the bases."""
        # Pads stand on the right: a position has a base if its first one is no pad.
        keys = None if real is None else real[:, :: self.config.stride, 0][:, None, None]
        rotary = rotary_angles(short.size(1), self.config.blocks.head_size, None, short.device)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block in (self.blocks[number] for number in blocks):
            call = partial(checkpoint, block, use_reentrant=False) if recompute else block
            short, weights = call(short, keys, rotary, maps is not None)
            if maps is not None:
                maps.append(weights)
        return short

    def _lengthened(self, short: Tensor, length: int) -> Tensor:
        """The output of the last block (B, S, block size) at every base (B, length, D)."""
        back: Tensor = self.lengthen(self.encoder["emb_layer_norm_after"](short))
        return back.repeat_interleave(self.config.stride, dim=1)[:, :length]


class ResidualConvolution(nn.Module):
    """x + conv(ReLU(LayerNorm(x))), pads held at zero."""

    def __init__(self, config: HybridConfig, dilation: int) -> None:
        super().__init__()
        d, width = config.hidden_size, config.kernel_size
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.convolution = nn.Conv1d(
            d, d, width, padding=dilation * (width // 2), dilation=dilation
        )

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x (B, L, D), real (B, L, 1) or None without pads."""
        return x + convolve(self.convolution, _zeroed(F.relu(self.norm(x)), real))


def _zeroed(x: Tensor, real: Tensor | None) -> Tensor:
    """x (B, L, D) with pads, where real (B, L, 1) is false, at zero."""
    return x if real is None else x * real


def _with_cls(x: Tensor, real: Tensor | None) -> Tensor:
    """x (B, L, D) behind its mean over the bases, the hidden state of ``<cls>``."""
    if real is None:
        mean = x.mean(1, keepdim=True)
    else:
        mean = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([mean.to(x.dtype), x], dim=1)


def _channel(beta: Tensor) -> Tensor:
    """beta (B, L) → (B, L, 2): its distance from one half, and that it was measured; else 0, 0."""
    measured = ~beta.isnan()
    return torch.stack([(beta.nan_to_num(0.5) - 0.5), measured.to(beta.dtype)], dim=-1)
