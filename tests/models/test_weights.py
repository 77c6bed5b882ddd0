"""Weights on disk: what is read is what was written, and what is wrong is named, all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedilla.errors import InputError
from cedilla.models.convert import models_convert
from cedilla.models.lock import write_lock
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_is_loaded_in_the_type_asked_for(tmp_path, dtype):
    model = saved(tmp_path)
    for name, tensor in load_directory(tmp_path, dtype=dtype).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(dtype))
    assert load_directory(tmp_path, device="meta").lm_head.bias.is_meta


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_all_forms_of_weights_are_loaded(tmp_path, sharded, pickled):
    model = saved(tmp_path / "one")
    folder = models_convert(
        str(tmp_path / "one"), out=tmp_path / "two", to="hf", shard_size="3KB" if sharded else "1GB"
    )
    if pickled:
        as_pickles(folder)
    files = list(folder.glob("*.bin" if pickled else "*.safetensors"))
    assert len(files) > 3 if sharded else len(files) == 1
    again = load_directory(folder).state_dict()
    assert all(torch.equal(again[name], w) for name, w in model.state_dict().items())


def as_pickles(folder):
    """Turn the safetensors of a directory into what torch.save writes."""
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), folder / pickled_name(path.name))
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {n: pickled_name(f) for n, f in content["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()


def pickled_name(name):
    return f"pytorch_{name.removesuffix('.safetensors')}.bin"


MEASURE = """
import ctypes, re, sys, torch
from cedilla.models import shards, weights

shards.PIECE = int(sys.argv[1])

def status(key):
    text = open("/proc/self/status").read()
    return int(re.search(rf"^{key}:\\s+(\\d+) kB", text, re.M)[1]) * 1024

weights.load_directory(sys.argv[2], device="meta")  # what is imported on first use
for path, dtype in zip(sys.argv[2::2], sys.argv[3::2]):
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from now on
    before = status("VmRSS")
    model = weights.load_directory(path, dtype=getattr(torch, dtype))
    print(status("VmHWM") - before)
    del model
    ctypes.CDLL("libc.so.6").malloc_trim(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
def test_memory_holds_a_model_once(tmp_path):
    """float32 files of 240 MB, in four shards or one file, taken into float32 and bfloat16."""
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6}
    saved(tmp_path / "one", **shape)
    size = (tmp_path / "one" / "model.safetensors").stat().st_size
    models_convert(str(tmp_path / "one"), out=tmp_path / "shards", to="hf", shard_size="70MB")
    models_convert(str(tmp_path / "one"), out=tmp_path / "bins", to="hf", shard_size="70MB")
    as_pickles(tmp_path / "bins")
    cases = [(name, t) for name in ("one", "shards", "bins") for t in ("float32", "bfloat16")]
    piece, slack = 20e6, 20e6
    words = [word for name, dtype in cases for word in (str(tmp_path / name), dtype)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(int(piece)), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert size > 200e6
    for (name, dtype), peak in zip(cases, map(int, done.stdout.split()), strict=True):
        loaded = size if dtype == "float32" else size / 2
        assert loaded * 0.9 < peak < loaded + piece + slack, (name, dtype, peak / 1e6)


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


def test_what_holds_for_every_layer_is_said_once(tmp_path):
    saved(tmp_path, num_hidden_layers=5)

    def spoil(weights):
        for i in (0, 1, 2, 4):
            weights.pop(f"esm.encoder.layer.{i}.LayerNorm.bias")
        weights["esm.encoder.layer.5.LayerNorm.bias"] = torch.zeros(16)

    rewrite(tmp_path, spoil)
    mend = "; is config.json that of these weights?"
    where = "DIR/model.safetensors esm.encoder.layer"
    assert problems(tmp_path) == [
        f"{where}.{{0-2, 4}}.LayerNorm.bias: is missing{mend}",
        f"{where}.5.LayerNorm.bias: is no weight of this model{mend}",
    ]


def test_weights_that_are_no_floating_point_numbers_are_named(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, lambda w: w.update({"lm_head.bias": w["lm_head.bias"].to(torch.int8)}))
    (problem,) = problems(tmp_path)
    assert "lm_head.bias: is not stored as floating-point numbers" in problem


def test_a_file_other_than_the_one_that_was_fetched_is_refused(tmp_path):
    saved(tmp_path)
    write_lock(tmp_path, repository="a/b", revision="f", hashes={"model.safetensors": ""})
    load_directory(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (problem,) = problems(tmp_path)
    assert problem.startswith("DIR/model.safetensors: altered: its sha256 is ")
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems(tmp_path)
    assert "bytes, 33,444 when it was fetched" in problem


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
    (problem,) = problems(tmp_path)
    assert problem.startswith("DIR/model.safetensors: not found; the weights must be in ")


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
    assert problem.endswith("; is it the configuration of a model that Cedilla knows?")
