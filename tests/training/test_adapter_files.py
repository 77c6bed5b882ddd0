"""Adapters on disk: loaded by peft on Hugging Face's model, and loaded here from there.

The reference is transformers 4.55.4 with the peft that is installed, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cedilla.dna.tokenizer import MASK, Tokenizer
from cedilla.errors import InputError
from cedilla.models.classifier import SequenceClassifier
from cedilla.models.convert import models_convert
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import load_directory, save_directory
from cedilla.training.adapter_files import CONFIG, HEAD, WEIGHTS, load_adapter, save_adapter
from cedilla.training.adapters import Adapter, Method, prepare

REFERENCE = Path(__file__).parents[2] / ".reference"
METHODS: tuple[Method, ...] = ("lora", "dora", "rslora", "ia3")
TOLERANCE = 1e-5
SEQUENCES = ["ATTCCGATTCCGATTCCG", "ACGTGTACNTGCACGGANCGACTAGTCTGA", "TTGACA"]
V1 = NTConfig(
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=36,
    vocab_size=73,
    max_position_embeddings=66,
    position_embedding_type="absolute",
    token_dropout=True,
)
SCRIPT = """
import json, sys, warnings
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import EsmForMaskedLM, EsmForSequenceClassification

warnings.simplefilter("error")
root = Path(sys.argv[1])
given = load_file(root / "input.safetensors")
all_four = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
settings = {
    "lora": LoraConfig(
        r=4, lora_alpha=12, target_modules=["query", "dense"], modules_to_save=["classifier"],
        rank_pattern={"query": 3}, alpha_pattern={"layer.1.output.dense": 5},
    ),
    "dora": LoraConfig(r=3, use_dora=True, target_modules=all_four, task_type="SEQ_CLS"),
    "rslora": LoraConfig(
        r=5, use_rslora=True, target_modules="all-linear", layers_to_transform=None,
        exclude_modules=["attention.output.dense"], modules_to_save=["classifier"],
    ),
    "ia3": IA3Config(
        target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["value"],
        task_type="SEQ_CLS",
    ),
}


def answers(model):
    with torch.no_grad():
        out = model.eval()(
            input_ids=given["ids"], attention_mask=given["mask"], output_hidden_states=True
        )
    return {"hidden": out.hidden_states[-1].contiguous(), "logits": out.logits}


def base(kind, seed=0):
    torch.manual_seed(seed)
    options = {"num_labels": 3} if kind is EsmForSequenceClassification else {}
    return kind.from_pretrained(root / "hf", attn_implementation="eager", **options)


import logging
logging.disable()
for method, config in settings.items():
    for kind in (EsmForMaskedLM, EsmForSequenceClassification):
        model = PeftModel.from_pretrained(base(kind), root / "ours" / method)
        save_file(answers(model), root / "ours" / method / f"{kind.__name__}.found")
    model = get_peft_model(base(EsmForSequenceClassification), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = root / "theirs" / method
    model.save_pretrained(folder)
    save_file(answers(model), folder / "expected")
"""


def drawn(model: torch.nn.Module, seed: int) -> None:
    """Move every trained weight away from where it began."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    ids, mask = Tokenizer.for_model(NucleotideTransformer(V1)).encode(SEQUENCES)
    ids[0, 2] = MASK
    return ids, mask


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Tensor, Tensor]) -> Path:
    """A base, and an adapter of each method trained here, by us, and there, by the reference."""
    if not (REFERENCE / "transformers").is_dir():
        pytest.skip("no .reference/transformers: make reference")
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(3)
    model = NucleotideTransformer(V1)
    drawn(model, 4)
    save_directory(model, folder / "base")
    models_convert(str(folder / "base"), out=folder / "hf", to="hf")
    save_file({"ids": inputs[0], "mask": inputs[1].long()}, folder / "input.safetensors")
    for method in METHODS:
        ours = classifier(folder)
        prepare(ours, method, Adapter(rank=3, alpha=7))
        drawn(ours, 5)
        save_adapter(folder / "ours" / method, ours, base=str(folder / "hf"))
    environment = os.environ | {
        "PYTHONPATH": str(REFERENCE),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def classifier(root: Path, **options: Any) -> SequenceClassifier:
    return SequenceClassifier(
        load_directory(root / "base"), 3, **{"pooling": "cls", "dropout": 0.0} | options
    )


def answers(model: SequenceClassifier, inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The hidden states, the logits of pre-training's output layer, and those of the head."""
    encoder: Any = model.eval().encoder
    with torch.no_grad():
        out = encoder(*inputs)
        return {"hidden": out.hidden, "mlm": out.logits, "logits": model(*inputs)}


def assert_equal(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> None:
    difference = ours - theirs if mask is None else (ours - theirs)[mask]
    assert difference.abs().max() <= TOLERANCE
    assert theirs.std() > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_ours_onto_hugging_faces_model(root, inputs, method) -> None:
    model = classifier(root)
    load_adapter(root / "ours" / method, model)
    ours = answers(model, inputs)
    folder = root / "ours" / method
    for kind, logits in (("EsmForMaskedLM", "mlm"), ("EsmForSequenceClassification", "logits")):
        found = load_file(folder / f"{kind}.found")
        assert_equal(ours["hidden"], found["hidden"], inputs[1])
        assert_equal(ours[logits], found["logits"], inputs[1] if logits == "mlm" else None)
    plain = answers(classifier(root), inputs)
    assert (plain["hidden"] - ours["hidden"]).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_one_trained_there_loads_here(root, inputs, method) -> None:
    model = classifier(root)
    found = load_adapter(root / "theirs" / method, model)
    assert found.method == method
    ours = answers(model, inputs)
    expected = load_file(root / "theirs" / method / "expected")
    assert_equal(ours["hidden"], expected["hidden"], inputs[1])
    assert_equal(ours["logits"], expected["logits"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("head.") or "lora_" in n or "ia3_" in n for n in trained)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, SequenceClassifier]:
    """A LoRA adapter on query and value, with the model that it is on."""
    model = small()
    prepare(model, "lora", Adapter(targets=("query", "value"), rank=2))
    drawn(model, 1)
    save_adapter(tmp_path / "adapter", model, base="a base")
    return tmp_path / "adapter", model


def small(outputs: int = 2, *, config: NTConfig = V1, **options: Any) -> SequenceClassifier:
    """A model that is drawn the same every time."""
    torch.manual_seed(2)
    encoder = NucleotideTransformer(config)
    drawn(encoder, 2)
    return SequenceClassifier(encoder, outputs, **{"pooling": "cls", "dropout": 0.0} | options)


def rewrite(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))


def test_the_files_are_those_of_peft(saved) -> None:
    folder, _ = saved
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS}
    config = json.loads((folder / CONFIG).read_text())
    chosen = ("peft_type", "r", "lora_alpha", "modules_to_save", "base_model_name_or_path")
    assert [config[key] for key in chosen] == ["LORA", 2, 16, ["classifier"], "a base"]
    assert "esm.encoder.layer.3.attention.self.value" in config["target_modules"]
    names = set(load_file(folder / WEIGHTS))
    assert "base_model.model.esm.encoder.layer.0.attention.self.query.lora_A.weight" in names
    assert "base_model.model.classifier.out_proj.bias" in names
    assert len(names) == 4 * 2 * 2 + 4


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {"features": 2}), ("dora", {"pooling": "mean_max"}), ("ia3", {"per_base": True})],
)
def test_a_head_without_a_counterpart_lies_beside_the_adapter(
    tmp_path, inputs, method, options
) -> None:
    model = small(**options)
    prepare(model, method, Adapter())
    drawn(model, 1)
    save_adapter(tmp_path, model, base="a base")
    assert (tmp_path / HEAD).exists()
    assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] is None
    again = small(**options)
    found = load_adapter(tmp_path, again)
    assert found == prepare(small(**options), method, Adapter())
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    # A later adapter whose head is peft's does not take up the old one.
    plain = small()
    prepare(plain, method, Adapter())
    save_adapter(tmp_path, plain, base="a base")
    assert not (tmp_path / HEAD).exists()


def test_an_adapter_on_a_hybrid_comes_back(tmp_path, hybrid) -> None:
    model = SequenceClassifier(load_directory(hybrid), 2)
    prepare(model, "dora", Adapter())
    drawn(model, 1)
    save_adapter(tmp_path, model, base="a hybrid")
    again = SequenceClassifier(load_directory(hybrid), 2)
    load_adapter(tmp_path, again)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_files_of_older_peft_and_of_the_bare_model_are_read(saved, inputs, capsys) -> None:
    folder, model = saved
    weights = {n.replace(".esm.", "."): t for n, t in load_file(folder / WEIGHTS).items()}
    weights = {n: t for n, t in weights.items() if "classifier" not in n}
    weights["base_model.model.contact_head.regression.lora_A.weight"] = torch.ones(2, 16)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "adapter_model.bin")
    rewrite(folder, target_modules=["query", "value"])
    again = small()
    load_adapter(folder, again)
    assert_equal(answers(again, inputs)["hidden"], answers(model, inputs)["hidden"])
    said = capsys.readouterr().err
    assert "also changes esm.contact_head.regression, which no model uses: left out" in said
    assert "has no head; the model's is as it was" in said


def problems_of(folder: Path, model: SequenceClassifier) -> list[str]:
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(InputError) as caught:
        load_adapter(folder, model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    return [str(problem) for problem in caught.value.problems]


def test_an_adapter_for_another_model_is_refused_at_once(saved) -> None:
    folder, _ = saved
    wider = replace(V1, hidden_size=32, num_hidden_layers=2)
    found = problems_of(folder, small(3, config=wider))
    text = "\n".join(found)
    assert "layer.3.attention.self.query: belongs to no linear layer here" in text
    assert "lora_A.weight: has shape (2, 24); the model's is (2, 32)" in text
    assert "was trained on a model of 4 layers; this one has 2" in text
    assert "head.out_proj.weight: has shape (2, 24); the model's is (3, 32)" in text
    assert all(str(folder) in line for line in found)


def test_an_adapter_of_a_shallower_model_does_not_pass_for_one_of_this(saved) -> None:
    """Every name and shape fits."""
    folder, _ = saved
    deeper = small(config=replace(V1, num_hidden_layers=6))
    (found,) = problems_of(folder, deeper)
    assert "was trained on a model of 4 layers; this one has 6; name its own base" in found
    # peft writes no depth, but usually the ends of names.
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    rewrite(folder, target_modules=["query", "value"])
    found = problems_of(folder, deeper)
    assert len(found) == 4
    assert "layer.4.attention.self.query: is a target, and has no weights in the file" in found[0]


def test_many_misfits_are_counted_and_not_listed(saved) -> None:
    folder, _ = saved
    weights = load_file(folder / WEIGHTS)
    for i in range(50):
        weights[f"base_model.model.esm.encoder.layer.{i}.other.lora_A.weight"] = torch.ones(2, 24)
    save_file(weights, folder / WEIGHTS)
    found = problems_of(folder, small())
    assert len(found) < 15
    assert "(50 in all)" in found[-1]


def test_a_head_that_reads_something_else(saved) -> None:
    folder, _ = saved
    (found,) = problems_of(folder, small(pooling="mean"))
    assert "its head reads 'cls'; the model's reads 'mean'" in found
    found = problems_of(folder, small(features=1))
    assert any("fusion.project: is missing" in line for line in found)


def test_a_model_is_loaded_onto_once(saved) -> None:
    folder, model = saved
    assert "carries adapters already" in problems_of(folder, model)[0]
    with pytest.raises(ValueError, match="carries no adapters"):
        save_adapter(folder, small(), base="a base")


def test_parts_that_are_missing_or_too_many(saved) -> None:
    folder, _ = saved
    weights = load_file(folder / WEIGHTS)
    name = "base_model.model.esm.encoder.layer.1.attention.self.query"
    del weights[f"{name}.lora_B.weight"]
    weights[f"{name}.lora_magnitude_vector"] = torch.ones(24)
    weights["base_model.model.esm.encoder.layer.1.LayerNorm.bias"] = torch.ones(24)
    save_file(weights, folder / WEIGHTS)
    text = "\n".join(problems_of(folder, small()))
    assert "query.lora_B.weight: is missing" in text
    assert "query.lora_magnitude_vector: is no part of lora" in text
    assert "such as esm.encoder.layer.1.LayerNorm.bias; fold it into the model" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "VERA"}, "is VERA; LoRA and IA3 can be read"),
        ({"peft_type": None}, "says no peft_type"),
        ({"r": "eight"}, "adapter_config.json r: is 'eight'"),
        ({"lora_bias": True}, "lora_bias: is True, which is not computed here"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base as well"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: is [[0, 2]]"),
    ],
)
def test_settings_that_are_not_computed_here(saved, settings, said) -> None:
    folder, _ = saved
    rewrite(folder, **settings)
    assert said in problems_of(folder, small())[0]


def test_damaged_and_absent_files(saved, tmp_path) -> None:
    folder, _ = saved
    assert "not found; name a directory with an adapter" in problems_of(tmp_path, small())[0]
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert "damaged" in problems_of(folder, small())[0]
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS}: not found" in problems_of(folder, small())[0]
    save_file({"esm.other": torch.ones(2)}, folder / WEIGHTS)
    assert "holds no weights of LoRA or IA3" in problems_of(folder, small())[0]
    save_file({"q.lora_A.weight": torch.tensor([[torch.nan]])}, folder / WEIGHTS)
    assert "q.lora_A.weight: holds NaN or infinity" in problems_of(folder, small())[0]
    (folder / CONFIG).write_text("{")
    assert "damaged" in problems_of(folder, small())[0]
