"""The zoo: names and directories become models, and what cannot be had is said with a mend."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.nn import functional

import cedilla
from cedilla.cli import bind
from cedilla.dna.tokenizer import MASK
from cedilla.errors import InputError
from cedilla.models import zoo
from cedilla.models.cnn import DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer
from cedilla.models.weights import save_directory

TINY = NTConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=75,
    max_position_embeddings=66,
)
V2_50M = "nucleotide-transformer-v2-50m-multi-species"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("CEDILLA_OFFLINE", "1")
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("CEDILLA_MODELS", raising=False)
    # The client reads its environment once, when it is imported.
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    save_directory(NucleotideTransformer(TINY), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_directory_is_loaded(tiny):
    for name in (tiny, str(tiny)):
        model = cedilla.load(name)
        assert model.config == TINY
        assert not model.training
    ids, mask = cedilla.Tokenizer.for_model(model).encode(["ACGTAC", "NN"])
    out = model(ids, mask)
    assert out.logits.shape == (2, 3, 75)
    assert out.hidden.shape == (2, 3, 16)


def test_the_embedded_model_reads_dna():
    model = cedilla.load("mini")
    tokenizer = cedilla.Tokenizer.for_model(model)
    # Repeats and CpG-poor stretches, as in genomes; a model that learned nothing is at uniform.
    alu = "GGCCGGGCGCGGTGGCTCACGCCTGTAATCCCAGCACTTTGGGAGGCCGAGGCGGGCGGATCACGAGGTCAGGAGATCGAGACC"
    dna = [
        alu + "TTTTTGTATTTTTAGTAGAGACGGGGTTTCACCGTGTTAGCCAGGATGGTCTCGATCTCCTGACC",
        "ACACACAC" * 16,
    ]
    ids, mask = tokenizer.encode(dna)
    masked = mask & (torch.arange(ids.size(1)) % 7 == 3)
    with torch.no_grad():
        logits = model(ids.masked_fill(masked, MASK), mask).logits
    assert logits.isfinite().all()
    loss = functional.cross_entropy(logits[masked], ids[masked]).item()
    assert loss < math.log(4**model.config.k)


def test_the_embedded_model_is_small_enough_to_ship():
    files = list((zoo.EMBEDDED / "mini").iterdir())
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_a_directory_without_a_model_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/config.json: not found"):
        cedilla.load(tmp_path / "empty")


def test_a_folder_named_like_a_model_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cedilla.load("mini").config.max_tokens > 1


def test_the_short_name_of_a_published_model_is_an_alias(tmp_path, monkeypatch, tiny):
    assert zoo.card("nucleotide-transformer-v2-50m") == zoo.card(V2_50M)
    assert zoo.card(V2_50M).repository == f"InstaDeepAI/{V2_50M}"
    tiny.rename(tmp_path / V2_50M)
    monkeypatch.setenv("CEDILLA_MODELS", str(tmp_path))
    assert cedilla.load("nucleotide-transformer-v2-50m").config == TINY


@pytest.mark.parametrize("name", ["cnn", "kmer"])
def test_a_baseline_is_not_loaded(name):
    with pytest.raises(InputError, match="is a baseline without pre-trained weights"):
        cedilla.load(name)


def test_encoders_are_loaded_or_built(tiny):
    assert isinstance(zoo.build("cnn"), DilatedCNN)
    assert zoo.build(tiny).config == TINY


def test_a_model_is_loaded_in_the_type_asked_for(tiny):
    model = cedilla.load(tiny, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert cedilla.load(tiny, device="meta").lm_head.bias.is_meta


def test_the_list_names_every_model(capsys):
    zoo.models()
    printed = capsys.readouterr().out
    for name, card in zoo.CARDS.items():
        (line,) = (row for row in printed.splitlines() if row.startswith(f"{name} "))
        assert f" {card.context:,} " in line
        assert card.licence in line
    assert "2,547.8" in printed


def test_the_list_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    zoo.models()
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= 80
    assert all(any(row.startswith(name) for row in rows) for name in zoo.CARDS)


def shown(name, capsys):
    zoo.models_show(name)
    lines = capsys.readouterr().out.splitlines()
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in lines]
    assert len({label for label, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_a_model_is_shown_with_its_numbers(capsys):
    v2 = shown("nucleotide-transformer-v2-50m", capsys)
    assert v2["name"] == V2_50M
    assert v2["shape"] == "12 layers, 512 wide, 16 heads of 32, FFN 2,048 (bias-free SwiGLU)"
    assert v2["positions"] == "rotary"
    assert v2["context"] == "12,282 bp: 2,048 tokens with <cls>"
    assert v2["parameters"] == "55,904,972 in the published files, 54,855,179 of them used"
    assert v2["memory"] == "219 MB in float32, 110 MB in bfloat16, for the weights"
    assert v2["licence"] == "CC BY-NC-SA 4.0"
    assert v2["source"] == (
        f"https://huggingface.co/InstaDeepAI/{V2_50M} at 81b29e5786726d891dbf929404ef20adca5b36f1"
    )
    assert v2["files"] == f"not here; `cedilla models get {V2_50M}` fetches them"
    v1 = shown("nucleotide-transformer-2.5b-1000g", capsys)
    assert v1["shape"].endswith("20 heads of 128, FFN 10,240 (GELU with biases)")
    assert v1["tokens"] == (
        "6-mers, 4,105 ids of version 1; <mask> embeddings are zeroed and the rest rescaled"
    )
    assert v1["positions"] == "a learned table"
    assert v1["context"].startswith("5,994 bp")
    assert v1["memory"].startswith("10.2 GB in float32, 5.1 GB in bfloat16")
    assert v1["source"].endswith(" at its newest commit, recorded at the first download")
    assert "1e-5" in shown("nucleotide-transformer-v2-50m-3mer", capsys)["note"]


def test_what_is_not_published_is_shown_too(tiny, capsys):
    assert shown("mini", capsys)["files"] == str(zoo.EMBEDDED / "mini")
    assert shown("cnn", capsys)["parameters"] == "324,464, trained from scratch"
    found = shown(str(tiny), capsys)
    assert found["directory"] == str(tiny)
    assert found["shape"].startswith("1 layer, 16 wide")
    with pytest.raises(InputError, match="is neither in the zoo nor a directory"):
        zoo.models_show("minni")


@pytest.mark.parametrize("words", [["models"], ["models", "list"]])
def test_the_bare_command_lists(words, capsys):
    bind(" ".join(words), tokens=words)()
    assert "nucleotide-transformer-v2-50m-multi-species" in capsys.readouterr().out


def test_a_type_may_be_named_and_another_is_refused():
    assert zoo.load("mini", dtype="bfloat16").lm_head.bias.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype='auto' is no choice; choose float32"):
        zoo.load("mini", dtype="auto")


def test_a_hybrid_is_shown_with_its_parts(hybrid, capsys):
    found = shown(str(hybrid), capsys)
    assert found["family"] == "hybrid"
    assert found["convolutions"] == (
        "one over 5 bases, then 2 residual ones over 3, 16 wide, dilations 1, 2"
    )
    assert found["blocks"] == (
        "2 layers, 24 wide, 2 heads of 12, FFN 32 (bias-free SwiGLU), 3 bases per position"
    )
    assert found["context"] == "63 bp: 64 tokens with <cls>"
    assert found["layers"] == "0 to 3 in --layers"
    used = sum(p.numel() for p in cedilla.load(hybrid).parameters())
    assert found["parameters"] == f"{used:,}"
