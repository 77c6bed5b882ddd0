"""Parity with transformers 4.55.4, in several shapes, with pads, `<mask>` and hidden states.

The models are ours, drawn at random and converted; the reference reads what `models convert` wrote.
Version 2 has no counterpart in transformers: its peer is the rotary ESM with the two halves of the
feed-forward replaced by a bias-free SwiGLU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cedilla.dna.tokenizer import MASK, Tokenizer
from cedilla.models.convert import models_convert
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory, save_directory

CHECKOUT = Path(__file__).parents[2]
REFERENCE = CHECKOUT / ".reference"
TOLERANCE = 2e-5
V1: dict[str, Any] = {"position_embedding_type": "absolute", "token_dropout": True}
# layers, width, heads, feed-forward, vocabulary
SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "v1": ((2, 40, 4, 56, 4105), V1),
    "v1 of one head and 3-mers": ((3, 24, 1, 96, 73), V1),
    "v1 without token dropout": ((1, 32, 8, 32, 4105), V1 | {"token_dropout": False}),
    "v2": ((2, 48, 4, 64, 4107), {}),
    "v2 of heads of 2 and 3-mers": ((3, 32, 16, 40, 75), {}),
    "v2 with another epsilon": ((1, 64, 2, 128, 75), {"layer_norm_eps": 1e-5}),
}
SEQUENCES = ["ATTCCGATTCCGATTCCG", "ACGTGTACNTGCACGGANCGACTAGTCTGA", "N", "ACGTTGCA" * 9]
SCRIPT = """
import json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer
from transformers.models.esm import modeling_esm as esm


class In(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)

    def forward(self, x):
        gate, value = self.dense(x).chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class Out(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, residual):
        return self.dense(x) + residual


plain = esm.EsmIntermediate, esm.EsmOutput
sequences = json.loads(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    settings = json.loads((folder / "config.json").read_text())
    gated = settings.get("add_bias_fnn") is False
    esm.EsmIntermediate, esm.EsmOutput = (In, Out) if gated else plain
    model, info = EsmForMaskedLM.from_pretrained(
        folder, config=EsmConfig(**settings), attn_implementation="eager", output_loading_info=True
    )
    tokenizer = EsmTokenizer.from_pretrained(folder)
    ids = tokenizer(sequences, padding=True, return_tensors="pt")
    given = load_file(folder / "input.safetensors")
    with torch.no_grad():
        out = model.eval()(given["ids"], attention_mask=given["mask"], output_hidden_states=True)
    found = {f"hidden.{i}": state for i, state in enumerate(out.hidden_states)}
    found |= {"logits": out.logits, "tokenized": ids["input_ids"]}
    save_file({k: v.contiguous() for k, v in found.items()}, folder / "expected.safetensors")
    info = {key: sorted(map(str, value)) for key, value in info.items()}
    (folder / "info.json").write_text(json.dumps(info))
"""

pytestmark = pytest.mark.skipif(
    not (REFERENCE / "transformers").is_dir(), reason="no .reference/transformers: make reference"
)


class Case(NamedTuple):
    """A model, what it is given, and what the reference makes of it."""

    model: NucleotideTransformer
    folder: Path
    ids: Tensor
    mask: Tensor
    expected: dict[str, Tensor]
    info: dict[str, list[str]]


def draw(shape: tuple[int, ...], options: dict[str, Any]) -> NucleotideTransformer:
    """Random weights, every norm and bias away from its usual one and zero."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    sizes = dict(zip((*names, "vocab_size"), shape, strict=True))
    config = NTConfig(**sizes, max_position_embeddings=66, **options)
    torch.manual_seed(sum(shape))
    model = NucleotideTransformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                norm = "norm" in name.lower() and name.endswith("weight")
                parameter.normal_(1.1 if norm else 0.1, 0.3)
            else:
                parameter.normal_(0.0, 1.0 if "embeddings" in name else parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("reference")
    given = {}
    for name, (shape, options) in SHAPES.items():
        model = draw(shape, options)
        save_directory(model, root / "ours" / name)
        folder = models_convert(str(root / "ours" / name), out=root / name, to="hf")
        ids, mask = Tokenizer.for_model(model).encode(SEQUENCES)
        masked = mask & (torch.rand(ids.shape) < 0.3) & (torch.arange(len(ids)) != 1)[:, None]
        ids = ids.masked_fill(masked, MASK)
        assert masked.any()
        save_file({"ids": ids, "mask": mask.long()}, folder / "input.safetensors")
        given[name] = model, folder, ids, mask
    command = [sys.executable, "-c", SCRIPT, json.dumps(SEQUENCES)]
    folders = [str(folder) for _, folder, _, _ in given.values()]
    environment = os.environ | {"PYTHONPATH": str(REFERENCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *folders], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {
        name: Case(
            *rest,
            load_file(rest[1] / "expected.safetensors"),
            json.loads((rest[1] / "info.json").read_text()),
        )
        for name, rest in given.items()
    }


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_logits_and_hidden_states_equal_the_reference(case: Case) -> None:
    with torch.no_grad():
        out = case.model(case.ids, case.mask, hidden_states=True)
    assert out.hidden_states is not None
    layers = case.model.config.num_hidden_layers
    assert f"hidden.{layers}" in case.expected
    assert f"hidden.{layers + 1}" not in case.expected
    for i, state in enumerate(out.hidden_states):
        difference = (state - case.expected[f"hidden.{i}"])[case.mask].abs().max()
        assert difference <= TOLERANCE, (i, difference)
    logits = case.expected["logits"]
    assert logits[case.mask].std() > 0.1
    assert (out.logits - logits)[case.mask].abs().max() <= TOLERANCE


def test_a_converted_model_lacks_nothing_that_the_reference_wants(case: Case) -> None:
    # The version 2 table of positions is dead; transformers ignores it without a word.
    assert case.info == {
        key: [] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    }


def test_its_tokenizer_gives_our_ids(case: Case) -> None:
    ids, _ = Tokenizer.for_model(case.model).encode(SEQUENCES)
    assert torch.equal(case.expected["tokenized"], ids)


def test_a_converted_model_is_still_ours(case: Case) -> None:
    again = load_directory(case.folder)
    for name, weight in case.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    with torch.no_grad():
        ours, theirs = (m(case.ids, case.mask).logits for m in (case.model, again))
    assert torch.equal(ours, theirs)
