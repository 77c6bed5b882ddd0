"""`cedilla merge`: the folded model computes what base and adapter do together."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cedilla
from cedilla.dna.tokenizer import Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.families import prepare as packed
from cedilla.models.weights import load_directory
from cedilla.training.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from cedilla.training.adapters import PRESETS, Adapter, prepare
from cedilla.training.merge import merge

SEQUENCES = ["ACGTTGCATTGACCA", "TTGACA", "ACGNNGT"]


def adapted(base, folder, method: str, **options: Any) -> SequenceClassifier:
    """A base with an adapter that does something, which is saved in `folder`."""
    torch.manual_seed(0)
    model = SequenceClassifier(load_directory(base), 2)
    prepare(model, method, Adapter(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(folder, model, base=str(base))
    return model.eval()


def hidden(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = Tokenizer.for_model(encoder).encode(SEQUENCES)
    with torch.no_grad():
        out = encoder.eval()(ids, mask)
    return out.hidden[mask], out.logits[mask]


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("base", ["three_mers", "hybrid"])
def test_the_folded_model_equals_base_and_adapter(request, tmp_path, capsys, base, method) -> None:
    base = request.getfixturevalue(base)
    model = adapted(base, tmp_path / "adapter", method)
    out = merge(adapter=tmp_path / "adapter", model=str(base), out=tmp_path / "out")
    folded = cedilla.load(out)
    assert folded.state_dict().keys() == load_directory(base).state_dict().keys()
    together = hidden(model.encoder)
    for ours, theirs, alone in zip(
        hidden(folded), together, hidden(load_directory(base)), strict=True
    ):
        assert (ours - theirs).abs().max() <= 1e-5
        assert (ours - alone).abs().max() > 0.05
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "the head is not part of a language model; it is left out" in said.err
    # Only what carried an adapter has changed.
    before = load_directory(base).state_dict()
    changed = {n for n, w in folded.state_dict().items() if not torch.equal(w, before[n])}
    stems = {name.rpartition(".")[0] for name in changed}
    assert stems == set(
        prepare(SequenceClassifier(load_directory(base), 2), method, Adapter()).modules
    )


def test_the_folded_model_is_packed_for_inference(three_mers, tmp_path) -> None:
    """It is refused with adapters on it."""
    model = adapted(three_mers, tmp_path / "adapter", "lora")
    with pytest.raises(TypeError, match="carries adapters"):
        packed(model.encoder)
    merge(adapter=tmp_path / "adapter", model=str(three_mers), out=tmp_path / "out")
    packed(cedilla.load(tmp_path / "out"))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_weights_that_were_trained_whole_are_taken_over(three_mers, tmp_path, method) -> None:
    """As peft saves them with `bias="all"`; IA3 rescales the new bias, not the old one."""
    folder = tmp_path / "adapter"
    model = adapted(three_mers, folder, method)
    names = (
        "esm.encoder.layer.0.attention.self.value.base_layer.bias",
        "esm.encoder.layer.1.LayerNorm.bias",
        "lm_head.bias",
    )
    weights = load_file(folder / WEIGHTS)
    for name in names:
        model.encoder.get_parameter(name).data.normal_()
        weights[f"base_model.model.{name}"] = model.encoder.get_parameter(name).detach()
    save_file(weights, folder / WEIGHTS)
    merge(adapter=folder, model=str(three_mers), out=tmp_path / "out")
    for ours, theirs in zip(
        hidden(cedilla.load(tmp_path / "out")), hidden(model.encoder), strict=True
    ):
        assert (ours - theirs).abs().max() <= 1e-5


def test_a_dry_run_says_what_would_be_folded(three_mers, tmp_path, capsys) -> None:
    adapted(three_mers, tmp_path / "adapter", "dora", rank=3)
    merge(adapter=tmp_path / "adapter", model=str(three_mers), out=tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    assert said.startswith("dora of rank 3 on 2 × attention.self.query, 2 × attention.self.key")
    assert f"into {three_mers} → {tmp_path / 'out'}: " in said
    size = 4 * sum(w.numel() for w in load_directory(three_mers).state_dict().values())
    assert f"{size:,} bytes in float32, 0.3 GB of memory, about 5 seconds" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_input_leaves_nothing_behind(three_mers, hybrid, tmp_path, dry_run) -> None:
    folder = tmp_path / "adapter"
    adapted(three_mers, folder, "lora")

    def said(model: Any = three_mers, out: str = "out", adapter: Any = folder) -> str:
        with pytest.raises(InputError) as caught:
            merge(adapter=adapter, model=str(model), out=tmp_path / out, dry_run=dry_run)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "belongs to no linear layer here" in said(hybrid)
    assert "is there already" in said(out="adapter")
    assert "is there already" in said(out=f"adapter/{CONFIG}")
    assert "not found" in said(adapter=tmp_path / "nowhere")
    assert "baseline" in said("cnn")
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"peft_type": "OFT"}))
    assert "is OFT; LoRA and IA3 can be read" in said()
    (folder / CONFIG).write_text(json.dumps(settings))
    (folder / WEIGHTS).write_bytes(b"0" * 40)
    assert "damaged" in said()


def test_an_empty_directory_is_taken_and_the_adapter_stays(three_mers, tmp_path) -> None:
    model = adapted(three_mers, tmp_path / "adapter", "lora")
    (tmp_path / "out").mkdir()
    merge(adapter=tmp_path / "adapter", model=str(three_mers), out=tmp_path / "out")
    again = SequenceClassifier(load_directory(three_mers), 2)
    load_adapter(tmp_path / "adapter", again)
    assert torch.equal(hidden(again.encoder)[0], hidden(model.encoder)[0])
