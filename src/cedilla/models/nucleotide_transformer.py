"""The Nucleotide Transformer, version 1 and 2: the whole model in one file.

Notable about it:

- pre-LayerNorm blocks, ``x = x + Wo·Attn(LN(x))`` then ``x = x + FFN(LN(x))``, and a LayerNorm
  after the last block, so that the last hidden state is the normalised one;
- v1: a learned position table whose positions count from ``pad_id + 1``, exact GELU with biases,
  and token dropout (``<mask>`` embeddings are zeroed and the rest rescaled, in evaluation too);
- v2: rotary positions in half-split layout, counted from ``<cls>`` = 0, and a bias-free SwiGLU;
- rotary positions can be rescaled for longer inputs, see :mod:`cedilla.models.rotary`;
- the output layer is not tied to the input embedding and has a bias;
- module names are those of Hugging Face's ESM, so that published weights and adapters fit.

Source: Dalla-Torre et al., Nature Methods 2024, and the published configurations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cedilla.dna.tokenizer import MASK, PAD, SPECIAL
from cedilla.models.frozen_block import run_frozen
from cedilla.models.rotary import Angles, Rescaling, RopeScaling, rotary_angles
from cedilla.models.training_attention import attend

MASK_SHARE_IN_TRAINING = 0.15 * 0.8
# What Hugging Face configurations hold beside the architecture.
_IRRELEVANT = {
    "architectures", "auto_map", "esmfold_config", "initializer_range", "is_folding_model",
    "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "vocab_list",
    "_name_or_path", "classifier_dropout", "id2label", "label2id", "problem_type", "bos_token_id",
    "eos_token_id", "cls_token_id", "hidden_act", "is_decoder", "add_cross_attention",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class NTConfig:
    """The shape of a Nucleotide Transformer, under the names of the published configurations.

    Raises
    ------
    ValueError
        For a head size that is not a whole (for rotary positions, even) number, a vocabulary
        that is no k-mer vocabulary, or an option that no published model uses.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 4107
    max_position_embeddings: int = 2050
    position_embedding_type: Literal["absolute", "rotary"] = "rotary"
    token_dropout: bool = False
    layer_norm_eps: float = 1e-12
    emb_layer_norm_before: bool = False
    tie_word_embeddings: bool = False
    add_bias_fnn: bool | None = None
    attention_probs_dropout_prob: float = 0.0
    hidden_dropout_prob: float = 0.0
    pad_token_id: int = PAD
    mask_token_id: int = MASK
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.rotary and self.head_size % 2:
            raise ValueError(f"head size {self.head_size} is odd; rotary positions need pairs")
        if self.position_embedding_type not in ("absolute", "rotary"):
            raise ValueError(f"position_embedding_type {self.position_embedding_type!r} is unknown")
        if self.rope_scaling and not self.rotary:
            raise ValueError("v1 has a learned table of positions; only rotary ones are rescaled")
        if self.emb_layer_norm_before or self.tie_word_embeddings:
            raise ValueError("emb_layer_norm_before and tie_word_embeddings are not in this family")
        if (self.pad_token_id, self.mask_token_id) != (PAD, MASK):
            raise ValueError(f"pad and mask ids must be {PAD} and {MASK}, as in every NT tokenizer")
        if self.attention_probs_dropout_prob or self.hidden_dropout_prob:
            raise ValueError(
                "the family is trained without dropout; adapters and heads have theirs"
            )
        _ = self.k, self.version  # the vocabulary is checked by deriving them

    @property
    def rotary(self) -> bool:
        """Rotary positions (v2) or a learned table (v1)."""
        return self.position_embedding_type == "rotary"

    @property
    def gated(self) -> bool:
        """A bias-free SwiGLU (v2) or a GELU with biases (v1)."""
        return self.rotary if self.add_bias_fnn is None else not self.add_bias_fnn

    @property
    def head_size(self) -> int:
        """Dimensions per attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def version(self) -> int:
        """1 or 2: which special tokens the vocabulary begins with."""
        return self._vocabulary()[0]

    @property
    def k(self) -> int:
        """Bases per token."""
        return self._vocabulary()[1]

    @property
    def max_tokens(self) -> int:
        """The longest input, ``<cls>`` included: the position table keeps two rows for padding."""
        return self.max_position_embeddings - 2

    @property
    def last_layer(self) -> int:
        """The number of the last hidden state; 0 is the embedding output."""
        return self.num_hidden_layers

    def _vocabulary(self) -> tuple[int, int]:
        for version, special in SPECIAL.items():
            for k in range(1, 9):
                if len(special) + 4**k + 5 == self.vocab_size:
                    return version, k
        raise ValueError(f"vocab_size {self.vocab_size} is not 4^k + 5 bases + special tokens")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NTConfig:
        """Read a ``config.json``. Unknown keys are refused, since they could change the model."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known - _IRRELEVANT)
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(unknown)}")
        missing = sorted({f.name for f in fields(cls)[:4]} - values.keys())
        if missing:
            raise ValueError(f"missing keys: {', '.join(missing)}")
        chosen = {key: values[key] for key in values.keys() & known}
        if chosen.get("rope_scaling"):
            chosen["rope_scaling"] = RopeScaling.from_dict(chosen["rope_scaling"])
        return cls(**chosen)


@dataclass(slots=True)
class Output:
    """What a model returns.

    logits (B, L, V); hidden (B, L, D), after the final LayerNorm; hidden_states: the embedding
    output, then the output of each block, the last one normalised, D wide; attentions: a map
    (B, H, L, L) per block. The last two are None unless asked for.
    """

    logits: Tensor
    hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class NucleotideTransformer(nn.Module):
    """The masked language model: encoder and output layer."""

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        self.config = config
        self.esm = Encoder(config)
        self.lm_head = MaskedLMHead(config)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> Output:
        """Run the model on token ids (B, L).

        `mask` (B, L) is true at tokens and false at pads; without one, pads are recognised by
        their id, so that no token ever attends to one.
        """
        hidden, states, maps = self.esm(ids, mask, hidden_states, attentions)
        return Output(
            self.lm_head(hidden),
            hidden,
            tuple(states) if hidden_states else None,
            tuple(maps) if attentions else None,
        )

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as before pre-training: N(0, 0.02), biases and pads zero, scales one."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "layer_norm" in name.lower() or "LayerNorm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight[PAD].zero_()

    def extend_context(
        self, factor: float, method: Rescaling = "yarn", *, trained_tokens: int | None = None
    ) -> None:
        """Take inputs `factor` times as long as in pre-training; saved with the configuration.

        `trained_tokens` is the length in pre-training, by default the longest input so far.
        Raises ValueError for v1, which has no positions beyond its table.
        """
        config, before = self.config, self.config.rope_scaling
        trained = trained_tokens or (before.trained_tokens if before else config.max_tokens)
        config = replace(
            config,
            max_position_embeddings=max(config.max_tokens, round(factor * trained)) + 2,
            rope_scaling=RopeScaling(type=method, factor=factor, trained_tokens=trained),
        )
        for part in (self, self.esm, self.esm.embeddings):
            part.config = config

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last hidden state (B, L, D), without the cost of the output layer."""
        hidden: Tensor = self.esm(ids, mask)[0]
        return hidden


class Encoder(nn.Module):
    """Embeddings and blocks.

    With `gradient_checkpointing`, training keeps the input of each block alone and computes the
    rest of the block again in the backward pass (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict(
            {
                "layer": nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
                "emb_layer_norm_after": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The Transformer blocks, first to last."""
        return cast(nn.ModuleList, self.encoder["layer"])

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """hidden (B, L, D); if asked for, the states before each block and the last, the maps."""
        L = ids.size(1)
        mask = ids != PAD if mask is None else mask.to(torch.bool)
        if self.config.max_tokens < L:
            raise ValueError(f"{L} tokens; the model takes {self.config.max_tokens}")
        return self._through(self.embeddings(ids, mask), mask, 0, hidden_states, attentions)

    def above(self, x: Tensor, mask: Tensor, first: int) -> Tensor:
        """The last hidden state (B, L, D) of x (B, L, D), which enters block number `first`."""
        return self._through(x, mask.to(torch.bool), first, False, False)[0]

    def _through(
        self, x: Tensor, mask: Tensor, first: int, hidden_states: bool, attentions: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        B, L, _ = x.size()
        config = self.config
        rotary = None
        if config.rotary:
            rotary = rotary_angles(L, config.head_size, config.rope_scaling, x.device)
        # A full mask is dropped: attention without one takes the faster kernels.
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_exporting()
        keys = None if on_cpu and bool(mask.all()) else mask.view(B, 1, 1, L)
        states, maps = [], []
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block in islice(self.blocks, first, None):
            if hidden_states:
                states.append(x)
            call = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x, weights = call(x, keys, rotary, attentions)
            if attentions:
                maps.append(weights)
        x = self.encoder["emb_layer_norm_after"](x)
        return x, [*states, x], maps


class Embeddings(nn.Module):
    """Token embeddings and, in v1, learned positions and token dropout."""

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        if not config.rotary:
            self.position_embeddings = nn.Embedding(
                config.max_position_embeddings,
                config.hidden_size,
                padding_idx=config.pad_token_id,
            )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x: Tensor = self.word_embeddings(ids)
        if self.config.token_dropout:
            masked = ids == self.config.mask_token_id
            share = (masked & mask).sum(-1) / mask.sum(-1).clamp(min=1)
            scale = (1 - MASK_SHARE_IN_TRAINING) / (1 - share)
            x = x.masked_fill(masked.unsqueeze(-1), 0.0) * scale[:, None, None].to(x.dtype)
        if not self.config.rotary:
            pad = self.config.pad_token_id
            real = (ids != pad).long()
            x = x + self.position_embeddings(real.cumsum(1) * real + pad)
        return x


class Block(nn.Module):
    """One pre-LayerNorm Transformer block."""

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gated = config.gated
        self.attention = Attention(config)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        wide = 2 * f if self.gated else f
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, wide, bias=not self.gated)})
        self.output = nn.ModuleDict({"dense": nn.Linear(f, d, bias=not self.gated)})

    def forward(
        self, x: Tensor, keys: Tensor | None, rotary: Angles | None, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not want_weights and (found := run_frozen(self, x, keys, rotary)) is not None:
            return found, None
        attended, weights = self.attention(x, keys, rotary, want_weights)
        x = x + attended
        h = self.intermediate["dense"](self.LayerNorm(x))
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        return x + self.output["dense"](h), weights


class Attention(nn.Module):
    """LayerNorm, multi-head self-attention, output projection."""

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.self = nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(d, d)})

    def forward(
        self, x: Tensor, keys: Tensor | None, rotary: Angles | None, want_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        B, L, D = x.size()
        h = self.LayerNorm(x)
        if torch.is_autocast_enabled(h.device.type):  # once for all three, forward and backward
            h = h.to(torch.get_autocast_dtype(h.device.type))
        projected = [projection(h) for projection in self.self.values()]  # each (B, L, D)
        training_on_cpu = self.training and projected[0].requires_grad and x.device.type == "cpu"
        if training_on_cpu and not (want_weights or torch.compiler.is_compiling()):
            y = attend(*projected, heads=self.heads, rotary=rotary, keys=keys)
            return self.output["dense"](y), None
        q, k, v = (y.view(B, L, self.heads, D // self.heads).transpose(1, 2) for y in projected)
        if rotary is not None:  # on (B, H, L, head size)
            q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        # On a CPU the backward pass of the fused kernel is several times slower than its parts.
        if want_weights or training_on_cpu:
            weights = _attention_weights(q, k, keys)
            y = weights.to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        y = self.output["dense"](y.transpose(1, 2).reshape(B, L, D))
        return y, weights if want_weights else None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + head size / 2) of x (B, H, L, head size) by their angles."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _attention_weights(q: Tensor, k: Tensor, keys: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √head size) (B, H, L, L), zero on pads."""
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.size(-1))
    if keys is not None:
        scores = scores.masked_fill(~keys, -torch.inf)
    return scores.softmax(dim=-1)


class MaskedLMHead(nn.Module):
    """dense → exact GELU → LayerNorm → untied decoder with a bias of its own name."""

    def __init__(self, config: NTConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.dense = nn.Linear(d, d)
        self.layer_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(d, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.layer_norm(F.gelu(self.dense(hidden)))
        return F.linear(x, self.decoder.weight, self.bias.to(x.dtype))
