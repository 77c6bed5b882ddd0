"""Export to ONNX: the file gives the reference's numbers, explains itself, or is not left."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cedilla
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models import export
from cedilla.models.export import models_export
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory, save_directory

onnxruntime = pytest.importorskip("onnxruntime", reason="needs cedilla[onnx]")
GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5


def opened(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def outputs_of(session, ids, mask) -> dict[str, torch.Tensor]:
    feed = {"input_ids": np.asarray(ids), "attention_mask": np.asarray(mask).astype(np.int64)}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, feed)), strict=True))


def assert_equals_the_reference(session, name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    ids, mask = expected["input_ids"], expected["attention_mask"].bool()
    found = outputs_of(session, ids, mask)
    for key, ours in (("logits", "logits"), ("hidden_states.3", "last_hidden_state")):
        assert (found[ours] - expected[key])[mask].abs().max() <= TOLERANCE
    found = outputs_of(session, expected["masked_input_ids"], mask)
    assert (found["logits"] - expected["masked_logits"])[mask].abs().max() <= TOLERANCE
    return expected, ids, mask


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """The golden v2 model as a file, with all hidden states."""
    out = tmp_path_factory.mktemp("onnx") / "v2.onnx"
    assert models_export(str(GOLDEN / "nt_v2_tiny"), out=out, hidden_states=True) == out
    assert [path.name for path in out.parent.iterdir()] == ["v2.onnx"]
    return opened(out)


def test_the_file_gives_the_numbers_of_the_reference(v2):
    expected, ids, mask = assert_equals_the_reference(v2, "nt_v2_tiny")
    states = outputs_of(v2, ids, mask)["hidden_states"]
    assert len(states) == 4
    for i, state in enumerate(states):
        assert (state - expected[f"hidden_states.{i}"])[mask].abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (2, 2), (7, 7), (33, 9)])
def test_any_batch_and_length_will_do(v2, shape):
    model = load_directory(GOLDEN / "nt_v2_tiny")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 4107, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, (shape[1] + 1) // 2 :] = False
    expected, found = model(ids, mask), outputs_of(v2, ids, mask)
    assert (found["logits"] - expected.logits)[mask].abs().max() <= TOLERANCE
    assert (found["last_hidden_state"] - expected.hidden)[mask].abs().max() <= TOLERANCE


def test_the_file_tells_how_to_tokenize(v2):
    facts = v2.get_modelmeta().custom_metadata_map
    assert facts["name"] == "nt_v2_tiny"
    assert facts["licence"] == "unknown"
    k, version, longest = (int(facts[name]) for name in ("k", "version", "max_tokens"))
    assert (k, version, longest) == (6, 2, 64)
    tokenizer = Tokenizer(k, version=version, max_tokens=longest)
    assert json.loads(facts["vocabulary"]) == tokenizer.vocabulary
    assert [i.shape for i in v2.get_inputs()] == [["batch", "length"]] * 2


@torch.no_grad()
def test_a_hybrid_of_any_batch_and_length(tmp_path, hybrid):
    model = load_directory(hybrid)
    out = models_export(str(hybrid), out=tmp_path / "h.onnx", hidden_states=True)
    session = opened(out)
    assert session.get_modelmeta().custom_metadata_map["k"] == "1"
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 2), (1, 64), (2, 3), (3, 7), (7, 31)):
        ids = torch.randint(6, 15, shape, generator=generator)
        ids[:, 0] = 3
        mask = torch.ones(shape, dtype=torch.bool)
        mask[0, shape[1] // 2 + 1 :] = False
        expected, found = model(ids, mask, hidden_states=True), outputs_of(session, ids, mask)
        assert (found["logits"] - expected.logits)[mask].abs().max() <= TOLERANCE
        states = torch.stack(expected.hidden_states)
        assert (found["hidden_states"] - states)[:, mask].abs().max() <= TOLERANCE


@pytest.mark.parametrize("gap", [0.01, float("nan")])
def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch, gap):
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = NucleotideTransformer(
        NTConfig(**shape, intermediate_size=8, vocab_size=75, max_position_embeddings=12)
    )
    model.initialise()
    save_directory(model, tmp_path / "model")
    graph_of = export._graph

    def wrong(model, **settings):
        model = copy.deepcopy(model)
        model.lm_head.bias.data += gap
        return graph_of(model, **settings)

    monkeypatch.setattr(export, "_graph", wrong)
    monkeypatch.setattr(export, "LARGEST_FILE", 0)  # weights in a second file
    with pytest.raises(
        InputError, match=r"m\.onnx: differs from the model: logits (1\.0e-02|nan);"
    ):
        models_export(str(tmp_path / "model"), out=tmp_path / "out" / "m.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_exported_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    out = tmp_path / "mini.onnx"
    models_export("mini", out=out, dry_run=True)
    size = sum(p.numel() for p in cedilla.load("mini").parameters()) * 4
    assert f"{size / 1e6:.1f} MB to write" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(InputError, match="did you mean mini"):
        models_export("minni", out=out)
    out.write_text("mine")
    with pytest.raises(InputError, match=r"mini\.onnx: is there already"):
        models_export("mini", out=out)
    assert out.read_text() == "mine"
    monkeypatch.setattr(export, "NEEDS", ("onnx", "no_such_library"))
    with pytest.raises(InputError, match=r"no_such_library not installed; pip install 'cedilla"):
        models_export("mini", out=tmp_path / "other.onnx")


@pytest.mark.slow
def test_v1_with_its_weights_in_a_second_file(tmp_path, monkeypatch):
    """Token dropout and learned positions; weights as those of a model beyond 2 GB."""
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    out = tmp_path / "v1.onnx"
    models_export(str(GOLDEN / "nt_v1_tiny"), out=out)
    data = tmp_path / "v1.onnx.data"
    assert data.stat().st_size > out.stat().st_size
    # The two can be moved together.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (out, data):
        path.rename(moved / path.name)
    assert_equals_the_reference(opened(moved / "v1.onnx"), "nt_v1_tiny")


@pytest.mark.slow
@torch.no_grad()
def test_the_embedded_model_by_its_name(tmp_path):
    cedilla.models_export("mini", out=tmp_path / "mini.onnx")
    facts = opened(tmp_path / "mini.onnx").get_modelmeta().custom_metadata_map
    k = cedilla.load("mini").config.k
    assert (facts["name"], facts["licence"], facts["k"]) == ("mini", "Apache-2.0", str(k))


@pytest.mark.slow
@torch.no_grad()
def test_a_longer_context(tmp_path, three_mers):
    model = cedilla.load(three_mers)
    model.extend_context(8, trained_tokens=300)
    save_directory(model, tmp_path / "long")
    models_export(str(tmp_path / "long"), out=tmp_path / "long.onnx")
    session = opened(tmp_path / "long.onnx")
    assert session.get_modelmeta().custom_metadata_map["max_tokens"] == "2400"
    ids = torch.randint(6, 70, (1, 2400), generator=torch.Generator().manual_seed(0))
    found = outputs_of(session, ids, torch.ones_like(ids))
    assert (found["logits"] - model(ids).logits).abs().max() <= 1e-4


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mini.onx: does not end in .onnx"):
        models_export("mini", out=tmp_path / "mini.onx")
