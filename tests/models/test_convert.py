"""Conversion loses nothing: there and back gives the same files, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cedilla.errors import InputError
from cedilla.models.convert import models_convert
from cedilla.models.hugging_face import AUTO_MAP, CODE, POSITION_TABLE, dead_weights
from cedilla.models.lock import write_lock
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.shards import headers, main_file, tensors, weight_files
from cedilla.models.weights import load_directory, read_config, save_directory
from cedilla.models.zoo import load

GOLDEN = Path(__file__).parents[1] / "golden"
BOTH = pytest.mark.parametrize("name", ["nt_v1_tiny", "nt_v2_tiny"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: w.clone() for n, w in tensors(headers(weight_files(main_file(folder))))}


def equal(a: Path, b: Path) -> bool:
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def drawn(folder: Path, **changes) -> Path:
    """A model of ours, its weights drawn."""
    torch.manual_seed(0)
    config = read_config(GOLDEN / "nt_v2_tiny" / "config.json")
    values = {k: getattr(config, k) for k in config.__dataclass_fields__} | changes
    save_directory(NucleotideTransformer(NTConfig(**values | {"add_bias_fnn": None})), folder)
    return folder


def problem(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    (found,) = caught.value.problems
    return str(found)


@BOTH
@pytest.mark.parametrize("size", ["5GB", "300KB"])
def test_from_hugging_face_and_back_gives_every_weight(tmp_path, name, size):
    """The golden models carry dead weights that no rule gives, and they too are kept."""
    ours = models_convert(str(GOLDEN / name), out=tmp_path / "ours", to="cedilla", shard_size=size)
    again = models_convert(str(ours), out=tmp_path / "again", to="hf", shard_size=size)
    assert equal(again, GOLDEN / name)
    assert not any(n.endswith("inv_freq") for n in weights(ours)), "a rule gives them"
    for folder in (ours, again):
        assert (len(list(folder.glob("model-*"))) > 1) == (size == "300KB")
        state = load_directory(folder).state_dict()
        golden = load_directory(GOLDEN / name).state_dict()
        assert all(torch.equal(state[n], w) for n, w in golden.items())
    settings = json.loads((again / "config.json").read_text())
    expected = json.loads((GOLDEN / name / "config.json").read_text())
    changed = {"transformers_version", "auto_map"}
    assert {k: v for k, v in settings.items() if k not in changed} == {
        k: v for k, v in expected.items() if k not in changed
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"position_embedding_type": "absolute", "token_dropout": True, "vocab_size": 4105}],
    ids=["v2", "v1"],
)
def test_to_hugging_face_and_back_gives_the_same_files(tmp_path, changes):
    ours = drawn(tmp_path / "ours", **changes)
    theirs = models_convert(str(ours), out=tmp_path / "theirs", to="hf")
    again = models_convert(str(theirs), out=tmp_path / "again", to="cedilla")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (ours / name).read_bytes()
    dead = dead_weights(read_config(ours / "config.json"))
    assert (POSITION_TABLE in dead) == (not changes)
    written = weights(theirs)
    assert written.keys() == weights(ours).keys() | dead.keys()
    assert all(torch.equal(written[n], w) for n, w in dead.items())


def test_a_model_in_bfloat16_stays_as_it_is(tmp_path, three_mers):
    ours = tmp_path / "ours"
    save_directory(load_directory(three_mers), ours, dtype=torch.bfloat16)
    out = models_convert(str(ours), out=tmp_path / "hf", to="hf")
    stored = weights(out)
    frequencies = {n for n in stored if n.endswith("inv_freq")}
    assert {stored[n].dtype for n in frequencies} == {torch.float32}
    assert {w.dtype for n, w in stored.items() if n not in frequencies} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    state = load_directory(ours).state_dict()
    assert all(torch.equal(w, state[n]) for n, w in load_directory(out).state_dict().items())


@pytest.mark.parametrize("to", ["hf", "cedilla"])
def test_another_type_is_taken_where_asked_for(tmp_path, to):
    out = models_convert(str(GOLDEN / "nt_v2_tiny"), out=tmp_path / "out", to=to, dtype="bfloat16")
    golden = load_file(GOLDEN / "nt_v2_tiny" / "model.safetensors")
    for name, weight in weights(out).items():
        kept = name.endswith("inv_freq")
        assert weight.dtype == (torch.float32 if kept else torch.bfloat16)
        assert torch.equal(weight, golden[name].to(weight.dtype))


def test_whole_numbers_stay_whole(tmp_path):
    shutil.copytree(GOLDEN / "nt_v1_tiny", tmp_path / "old")
    content = load_file(tmp_path / "old" / "model.safetensors")
    content["esm.embeddings.position_ids"] = torch.arange(66)[None]
    save_file(content, tmp_path / "old" / "model.safetensors")
    out = models_convert(str(tmp_path / "old"), out=tmp_path / "out", to="cedilla", dtype="float16")
    assert torch.equal(weights(out)["esm.embeddings.position_ids"], torch.arange(66)[None])


def test_what_float16_cannot_hold_is_refused(tmp_path):
    ours = drawn(tmp_path / "ours")
    content = load_file(ours / "model.safetensors")
    content["lm_head.bias"][3] = 1e5
    save_file(content, ours / "model.safetensors")
    call = {"out": tmp_path / "out", "to": "hf", "dtype": "float16"}
    message = problem(lambda: models_convert(str(ours), **call))
    assert "lm_head.bias has values beyond float16's range; choose --dtype bfloat16" in message
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_pickle_becomes_safetensors(tmp_path):
    (tmp_path / "bin").mkdir()
    shutil.copy(GOLDEN / "nt_v2_tiny" / "config.json", tmp_path / "bin")
    golden = load_file(GOLDEN / "nt_v2_tiny" / "model.safetensors")
    torch.save(golden, tmp_path / "bin" / "pytorch_model.bin")
    out = models_convert(str(tmp_path / "bin"), out=tmp_path / "out", to="hf")
    assert equal(out, GOLDEN / "nt_v2_tiny")


def test_version_2_says_where_its_code_is(tmp_path):
    out = models_convert(str(GOLDEN / "nt_v2_tiny"), out=tmp_path / "v2", to="hf")
    settings = json.loads((out / "config.json").read_text())
    assert settings["auto_map"] == {n: f"{CODE}--{place}" for n, place in AUTO_MAP.items()}
    assert "model_type" not in settings
    text = (out / "README.md").read_text()
    assert "trust_remote_code=True" in text
    assert CODE in text
    out = models_convert(str(GOLDEN / "nt_v1_tiny"), out=tmp_path / "v1", to="hf")
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert "trust_remote_code" not in (out / "README.md").read_text()


def test_the_licence_of_a_fetched_model_is_carried_on(tmp_path):
    folder = drawn(tmp_path / "fetched")
    repository = "InstaDeepAI/nucleotide-transformer-v2-50m-multi-species"
    write_lock(folder, repository=repository, revision="f", hashes={"model.safetensors": ""})
    out = models_convert(str(folder), out=tmp_path / "out", to="cedilla")
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-nc-sa-4.0\n")
    assert f"from https://huggingface.co/{repository}." in text
    out = models_convert(str(drawn(tmp_path / "own")), out=tmp_path / "own_out", to="cedilla")
    assert "under the licence of its source" in (out / "README.md").read_text()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    source, out = str(GOLDEN / "nt_v2_tiny"), tmp_path / "out"
    models_convert(source, out=out, to="hf", dry_run=True, shard_size="300KB")
    said = capsys.readouterr().out
    total = sum(w.nbytes for w in load_file(GOLDEN / "nt_v2_tiny" / "model.safetensors").values())
    assert f"57 weights, {total:,} bytes in 4 file(s)" in said
    assert "6 of them the model does not use" in said
    assert "memory: 525,696 bytes at a time" in said
    assert not out.exists()


def test_nothing_is_overwritten(tmp_path):
    ours = drawn(tmp_path / "ours")
    message = problem(lambda: models_convert(str(ours), out=ours, to="hf"))
    assert message == f"{ours}/config.json: is there already; choose another --out"
    (tmp_path / "file").touch()
    message = problem(lambda: models_convert(str(ours), out=tmp_path / "file", to="hf"))
    assert message == f"{tmp_path}/file: is not a directory; choose another --out"


@pytest.mark.parametrize("size", ["", "5", "GB", "-1GB", "0GB", "5 apples"])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    call = {"out": tmp_path / "out", "to": "hf", "shard_size": size}
    message = problem(lambda: models_convert(str(GOLDEN / "nt_v1_tiny"), **call))
    assert message == f"--shard-size: {size!r} is no size; write 500MB or 2GB"


def test_sources_that_are_no_model_are_refused(tmp_path):
    call = {"out": tmp_path / "out", "to": "hf"}
    assert "is neither in the zoo nor a directory" in problem(lambda: models_convert("x", **call))
    assert "is a baseline" in problem(lambda: models_convert("cnn", **call))
    folder = drawn(tmp_path / "ours")
    write_lock(folder, repository="a/b", revision="f", hashes={"model.safetensors": ""})
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content + b"x")
    assert "when it was fetched" in problem(lambda: models_convert(str(folder), **call))


def test_rescaled_positions_do_not_go_where_they_are_unknown(tmp_path):
    model = load_directory(drawn(tmp_path / "ours"))
    model.extend_context(2.0, "linear")
    save_directory(model, tmp_path / "long")
    call = {"out": tmp_path / "out", "to": "hf"}
    message = problem(lambda: models_convert(str(tmp_path / "long"), **call))
    assert "has rescaled rotary positions, which the published code does not know" in message
    out = models_convert(str(tmp_path / "long"), out=tmp_path / "ok", to="cedilla")
    assert read_config(out / "config.json") == model.config


def test_the_embedded_model_keeps_its_weights_and_its_licence(tmp_path):
    out = models_convert("mini", out=tmp_path / "mini", to="cedilla")
    assert (out / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    state = load("mini").state_dict()
    assert all(torch.equal(w, state[n]) for n, w in load_directory(out).state_dict().items())


def test_a_hybrid_has_no_counterpart_in_the_other_layout(tmp_path, hybrid):
    message = problem(lambda: models_convert(str(hybrid), out=tmp_path / "hf", to="hf"))
    assert "is a hybrid, which no code in Hugging Face's layout can read" in message
    assert not (tmp_path / "hf").exists()
    out = models_convert(str(hybrid), out=tmp_path / "half", to="cedilla", dtype="bfloat16")
    assert read_config(out / "config.json") == read_config(hybrid / "config.json")
    assert "A hybrid of convolutions and 2 Transformer layers" in (out / "README.md").read_text()
    golden = load_directory(hybrid).state_dict()
    found = weights(out)
    assert found.keys() == golden.keys()
    assert all(torch.equal(w, golden[n].bfloat16()) for n, w in found.items())
