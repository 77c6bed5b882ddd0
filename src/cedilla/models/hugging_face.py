"""Hugging Face's layout of a model: settings, tokenizer files, and weights that nobody uses.

The files are written as those that InstaDeep published, byte for byte where a published one exists
for the shape, but for `auto_map`: it names the repository with the code, which a copy lacks.
Sources: the published configurations, and the SHA-256 of published files that
https://github.com/tcztzy/evo.cpp records.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from cedilla.dna.tokenizer import Tokenizer
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.rotary import BASE
from cedilla.models.weights import POSITION_TABLE

CONTACT_WEIGHT = "esm.contact_head.regression.weight"
CONTACT_BIAS = "esm.contact_head.regression.bias"
INVERSE_FREQUENCIES = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
# The version 2 architecture is not in transformers: its code is published beside the weights.
CODE = "InstaDeepAI/nucleotide-transformer-v2-50m-multi-species"
AUTO_MAP = {
    "AutoConfig": "esm_config.EsmConfig",
    "AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM",
    "AutoModelForTokenClassification": "modeling_esm.EsmForTokenClassification",
    "AutoModelForSequenceClassification": "modeling_esm.EsmForSequenceClassification",
}


def settings(config: NTConfig, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json`` as published for a model of this shape, its weights stored as `dtype`."""
    models = [name.partition(".")[2] for name in list(AUTO_MAP.values())[1:]]
    values: dict[str, Any] = {
        "architectures": models if config.gated else models[:1],
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "emb_layer_norm_before": config.emb_layer_norm_before,
        "esmfold_config": None,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "is_folding_model": False,
        "layer_norm_eps": config.layer_norm_eps,
        "mask_token_id": config.mask_token_id,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "esm",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": config.pad_token_id,
        "position_embedding_type": config.position_embedding_type,
        "tie_word_embeddings": config.tie_word_embeddings,
        "token_dropout": config.token_dropout,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.32.0.dev0" if config.gated else "4.29.0.dev0",
        "use_cache": False,
        "vocab_list": None,
        "vocab_size": config.vocab_size,
    }
    if config.gated:
        # Without a model_type nobody takes it for transformers' own ESM, which has no gate.
        del values["model_type"]
        values["auto_map"] = {name: f"{CODE}--{place}" for name, place in AUTO_MAP.items()}
        values["add_bias_fnn"] = False
    return dict(sorted(values.items()))


def tokenizer_files(config: NTConfig) -> dict[str, str]:
    """The text of each file that transformers' EsmTokenizer reads."""
    tokens = Tokenizer(config.k, version=config.version).vocabulary
    if config.version == 1:
        tokens = [*tokens, "<eos>", "<bos>"]  # as published; the model has no rows for them
    special = {f"{name}_token": f"<{name}>" for name in ("cls", "mask", "pad", "unk")}
    rest = {
        "clean_up_tokenization_spaces": True,
        "eos_token": None,
        "model_max_length": config.max_tokens,
        "tokenizer_class": "EsmTokenizer",
    }
    return {
        "vocab.txt": "\n".join(tokens),
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(rest, indent=2) + "\n",
    }


def dead_weights(config: NTConfig) -> dict[str, Tensor]:
    """Weights that the published code expects to find and does not use, in float32.

    Zeros but for the rotary frequencies, which that code does use as it finds them.
    """
    maps = config.num_hidden_layers * config.num_attention_heads
    dead = {CONTACT_WEIGHT: torch.zeros(1, maps), CONTACT_BIAS: torch.zeros(1)}
    if config.rotary:
        dead[POSITION_TABLE] = torch.zeros(config.max_position_embeddings, config.hidden_size)
        pairs = torch.arange(0, config.head_size, 2).float() / config.head_size
        for layer in range(config.num_hidden_layers):
            dead[INVERSE_FREQUENCIES.format(layer)] = 1.0 / (BASE**pairs)
    return dead
