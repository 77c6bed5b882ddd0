"""Weights on disk: what is read is what was written, and what is wrong is named, all of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedilla.errors import InputError
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory, save_directory

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 75,
    "max_position_embeddings": 34,
}
V1 = {"position_embedding_type": "absolute", "token_dropout": True, "vocab_size": 4105}


def saved(path, *, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = NucleotideTransformer(NTConfig(**SHAPE | changes))
    save_directory(model, path, dtype=dtype)
    return model


def rewrite(path, change):
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")


def problems(path):
    with pytest.raises(InputError) as caught:
        load_directory(path)
    return [str(problem).replace(str(path), "DIR") for problem in caught.value.problems]


@pytest.mark.parametrize("changes", [{}, V1], ids=["v2", "v1"])
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path, changes):
    model = saved(tmp_path, **changes)
    again = load_directory(tmp_path)
    assert again.config == model.config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.randint(6, 70, (2, 9))
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_is_stored_and_read_as_float32(tmp_path):
    model = saved(tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    for name, tensor in load_directory(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].bfloat16().float())


def test_missing_unknown_and_misshapen_weights_come_in_one_error(tmp_path):
    saved(tmp_path)

    def spoil(weights):
        del weights["lm_head.bias"]
        weights["esm.pooler.weight"] = torch.zeros(2)
        weights["lm_head.dense.weight"] = torch.zeros(16, 8)

    rewrite(tmp_path, spoil)
    mend = "; is config.json that of these weights?"
    assert problems(tmp_path) == [
        f"DIR/model.safetensors lm_head.bias: is missing{mend}",
        f"DIR/model.safetensors esm.pooler.weight: is no weight of this model{mend}",
        "DIR/model.safetensors lm_head.dense.weight: has shape (16, 8); the model's is (16, 16)"
        + mend,
    ]


def test_dead_weights_of_published_files_are_passed_over(tmp_path):
    model = saved(tmp_path)

    def add_dead(weights):
        weights["esm.embeddings.position_embeddings.weight"] = torch.zeros(34, 16)
        weights["esm.embeddings.position_ids"] = torch.arange(34)[None]
        weights["esm.contact_head.regression.weight"] = torch.zeros(1, 4)
        weights["esm.contact_head.regression.bias"] = torch.zeros(1)
        for i in range(2):
            name = f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"
            weights[name] = torch.zeros(4)

    rewrite(tmp_path, add_dead)
    assert load_directory(tmp_path).state_dict().keys() == model.state_dict().keys()


def test_the_position_table_is_alive_in_version_1(tmp_path):
    saved(tmp_path, **V1)
    rewrite(tmp_path, lambda w: w.pop("esm.embeddings.position_embeddings.weight"))
    (problem,) = problems(tmp_path)
    assert "position_embeddings.weight: is missing" in problem


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_damaged_file_is_named(tmp_path, keep):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    (problem,) = problems(tmp_path)
    assert problem.startswith("DIR/model.safetensors: damaged: ")
    assert problem.endswith("; fetch or copy it again")


def test_absent_files_are_named(tmp_path):
    assert problems(tmp_path) == ["DIR/config.json: not found; name a directory with a model in it"]
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert problems(tmp_path) == [
        "DIR/model.safetensors: not found; the weights must be in safetensors"
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "Expecting property name"),
        ("[]", "holds no settings"),
        ("{}", "missing keys: hidden_size, intermediate_size, num_attention_heads"),
        (json.dumps(SHAPE | {"hidden_size": "16"}), ""),
        (json.dumps(SHAPE | {"num_attention_heads": 0}), ""),
        (json.dumps(SHAPE | {"new": 1}), "unknown keys: new"),
    ],
)
def test_an_impossible_configuration_is_named(tmp_path, text, what):
    (tmp_path / "config.json").write_text(text)
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"DIR/config.json: {what}")
    assert problem.endswith("; is it a Nucleotide Transformer?")
