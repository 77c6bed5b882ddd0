"""A fine-tuned model saved, moved and loaded again says what it said in its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import cedilla
from cedilla.errors import InputError
from cedilla.models import zoo
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.weights import read_config, save_directory
from cedilla.models.zoo import load
from cedilla.training import model_directory
from cedilla.training.finetune import finetune
from cedilla.training.model_directory import load_finetuned, weights_digest

FAST = {"batch_size": 16, "learning_rate": 2e-3, "epochs": 1}
SIZES = {"train": 64, "dev": 24, "test": 20}
LABELS: dict[str, Callable[[str], object]] = {
    "classes": lambda s: "rich" if gc(s) > 0.5 else "poor",
    "three": lambda s: int(gc(s) > 0.45) + int(gc(s) > 0.55),
    "regression": lambda s: round(100 * gc(s), 2),
    "per_base": lambda s: "".join(
        "1" if s[max(0, i - 1) : i + 1] == "CG" else "0" for i in range(len(s))
    ),
}
# What is trained on which labels; every method and kind once.
RUNS = {
    "full": ("full", "classes", {}),
    "lora": ("lora", "three", {}),
    "head": ("head", "classes", {}),
    "ia3": ("ia3", "regression", {"long": "tile"}),
    "bias": ("top", "per_base", {"strands": True}),
    "random": ("lora", "classes", {"weights": "random"}),
    "cnn": ("full", "classes", {"model": "cnn"}),
}


def gc(sequence: str) -> float:
    return sum(base in "CG" for base in sequence) / len(sequence)


def sequences(n: int, seed: int, *, long: bool = False) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(40, 400 if long else 60, n)
    return ["".join(rng.choice(list("ACGT"), length)) for length in lengths]


@pytest.fixture(scope="module")
def _as_in_tests() -> Iterator[None]:
    """Another processor, without bfloat16, so that runs and predictions differ by rounding alone;
    and a small cnn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        shape = CNNConfig(hidden_size=16, num_hidden_layers=2)
        patch.setitem(zoo.FROM_SCRATCH, "cnn", lambda: DilatedCNN(shape))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny, _as_in_tests) -> Callable[[str], Path]:
    """trained(name): a folder with the tables and the run of `RUNS`."""

    @cache
    def train(name: str) -> Path:
        method, kind, more = RUNS[name]
        folder = tmp_path_factory.mktemp(name)
        tables = {}
        for seed, (split, n) in enumerate(SIZES.items()):
            frame = pd.DataFrame({"sequence": sequences(n, seed, long="long" in more)})
            frame["label"] = frame["sequence"].map(LABELS[kind])
            tables[split] = folder / f"{split}.csv"
            frame.to_csv(tables[split], index=False)
        settings = FAST | {"model": str(tiny), "method": method} | more
        finetune(**tables, out=folder / "run", **settings)
        return folder

    return train


@pytest.fixture
def make_run(trained, tmp_path) -> Callable[[str], Path]:
    """make_run(name): a copy of that run; its tables are beside it."""

    def make(name: str) -> Path:
        return shutil.copytree(trained(name), tmp_path / name) / "run"

    return make


def moved(run: Path) -> Path:
    """The model alone, in another place; the run is gone."""
    shutil.move(run / "model", run.parent / "elsewhere")
    shutil.rmtree(run)
    return run.parent / "elsewhere"


def of_the_test_set(run: Path) -> list[str]:
    return pd.read_csv(run.parent / "test.csv")["sequence"].tolist()


@pytest.mark.parametrize("name", RUNS)
def test_it_says_what_it_said_in_its_run(name, make_run):
    run = make_run(name)
    before = pd.read_parquet(run / "predictions" / "test.parquet")
    found = load_finetuned(moved(run)).predict(of_the_test_set(run))
    renamed = {"classes": {"probability": "probability_rich"}}.get(RUNS[name][1], {})
    said = [c for c in before if c.startswith(("probability", "prediction"))]
    assert said
    for column in said:
        now, then = (
            np.concatenate(values.to_numpy()) if values.dtype == object else values.to_numpy()
            for values in (found[renamed.get(column, column)], before[column])
        )
        np.testing.assert_allclose(now, then, atol=1e-5, rtol=1e-4)
    assert found["familiar"].mean() > 0.5


def test_classes_have_their_names_and_a_calibrated_probability(make_run):
    model = load_finetuned(make_run("full"))
    model.calibration = type(model.calibration)(temperature=4.0)
    frame = model.predict(sequences(30, 5))
    assert set(frame["predicted"]) == {"poor", "rich"}
    assert ((frame["probability_rich"] >= 0.5) == (frame["predicted"] == "rich")).all()
    logit = np.log(frame["probability_rich"] / (1 - frame["probability_rich"]))
    np.testing.assert_allclose(frame["calibrated_rich"], 1 / (1 + np.exp(-logit / 4)), atol=1e-5)


def test_each_base_has_a_letter_of_its_own(make_run):
    run = make_run("bias")
    texts = of_the_test_set(run)
    frame = load_finetuned(run).predict(texts)
    assert frame["predicted"].str.len().tolist() == [len(text) for text in texts]
    for row in frame.itertuples():
        called = "".join(str(int(p > 0.5)) for p in row.probability_1)
        assert row.predicted == called
        assert len(row.calibrated_1) == len(called)


def test_what_is_written_follows_from_the_method(make_run):
    def files(name: str) -> set[str]:
        model = make_run(name) / "model"
        return {file.relative_to(model).as_posix() for file in model.rglob("*.*")}

    always = {"classifier.json", "head.safetensors", "familiarity.safetensors", "README.md"}
    weights = {"config.json", "model.safetensors"}
    names = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
    adapter = {f"adapter/{name}" for name in names}
    assert files("full") == always | weights
    assert files("lora") == always | adapter
    assert files("head") == always
    assert files("random") == always | weights | adapter  # no base has these weights


def test_a_model_with_all_weights_is_a_language_model_of_its_own(make_run, tiny):
    run = make_run("full")
    network = load(run / "model")
    assert isinstance(network, NucleotideTransformer)
    assert network.config == load(tiny).config


def test_another_base_is_refused(make_run, tiny, tmp_path):
    run = make_run("lora")
    other = load(tiny)
    save_directory(other, tmp_path / "same")
    with torch.no_grad():
        other.esm.embeddings.word_embeddings.weight[7, 7] += 1e-3
    save_directory(other, tmp_path / "other")
    load_finetuned(run, base=tmp_path / "same")
    with pytest.raises(InputError, match=r"is another model than .* sha256") as caught:
        load_finetuned(run, base=tmp_path / "other")
    assert str(tmp_path / "other") in str(caught.value)
    # The same weights, read by a model with other heads.
    config = tmp_path / "same" / "config.json"
    settings = json.loads(config.read_text()) | {"num_attention_heads": 2}
    config.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="is another model"):
        load_finetuned(run, base=tmp_path / "same")
    with pytest.raises(InputError, match="pass --base"):
        load_finetuned(run, base=tmp_path / "nowhere")


def test_files_that_are_absent_or_damaged_are_all_named(make_run):
    model = make_run("lora") / "model"
    (model / "adapter" / "adapter_config.json").unlink()
    weights = bytearray((model / "head.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "head.safetensors").write_bytes(weights)
    with pytest.raises(InputError) as caught:
        load_finetuned(model)
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == 2
    assert "adapter_config.json: not found" in problems[0]
    assert "head.safetensors: is damaged" in problems[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("target"), "damaged: KeyError"),
        (lambda values: values.update(more=1), "damaged: TypeError"),
        (lambda values: values.update(format=99), "a format of its own; install"),
    ],
)
def test_a_damaged_description_is_refused(make_run, change, message):
    file = make_run("head") / "model" / "classifier.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load_finetuned(file.parent)
    file.write_text("{")
    with pytest.raises(InputError, match="damaged: JSONDecodeError"):
        load_finetuned(file.parent)


def test_what_is_no_fine_tuned_model_is_refused(tiny, tmp_path):
    for path in (tiny, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"classifier.json: not found; name the run directory"):
            load_finetuned(path)


def test_a_killed_save_leaves_no_half_of_a_model(trained, tmp_path, monkeypatch):
    tables = {split: trained("head") / f"{split}.csv" for split in SIZES}
    again = partial(finetune, **tables, out=tmp_path / "run", model="cnn", **FAST)

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_directory, "model_card", killed)
        with pytest.raises(KeyboardInterrupt):
            again()
    assert not (tmp_path / "run" / "model").exists()
    run = again(resume=True)
    assert [file.name for file in run.glob("*model*")] == ["model"]
    load_finetuned(run)


def test_a_digest_is_of_the_numbers_not_of_the_files(tiny, tmp_path):
    save_directory(load(tiny), tmp_path / "copy")
    state = load_file(tmp_path / "copy" / "model.safetensors")
    save_file(dict(reversed(state.items())), tmp_path / "copy" / "model.safetensors", {"a": "b"})
    assert weights_digest(tmp_path / "copy") == weights_digest(tiny)
    assert read_config(tmp_path / "copy" / "config.json") == read_config(tiny / "config.json")


def test_the_card_says_what_it_was_made_of(make_run):
    run = make_run("lora")
    card = (run / "model" / "README.md").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    for data in json.loads((run / "manifest.json").read_text())["data"]:
        assert f"| {data['role']} | {data['file']} | {data['rows']} | `{data['sha256']}` |" in card
    assert f"| mcc | {metrics['train']['mcc']:.3f} |" in card
    assert "3 classes (0, 1, 2)" in card
    assert "Both strands are read" in card
    assert "{{" not in card
    assert "{%" not in card


def test_bad_sequences_are_refused_by_number(make_run):
    model = cedilla.load_finetuned(str(make_run("head")))
    with pytest.raises(InputError) as caught:
        model.predict(["ACGT", "", "ACXT"])
    problems = [str(problem) for problem in caught.value.problems]
    assert problems[0].startswith("input sequence 2: is empty")
    assert problems[1].startswith("input sequence 3: 'X' at position 3 is no nucleotide code")
    with pytest.raises(InputError, match=r"has 101 tokens; the model takes 64; cut it, or pass"):
        model.predict(["ACG" * 100])
    with pytest.raises(TypeError, match="pass \\[sequence\\]"):
        model.predict("ACGT")
    assert model.predict(["acgu", "ACGT"])["probability_rich"].nunique() == 1
