"""The zoo: names and directories become models, and what cannot be had is said with a mend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

import cedilla
from cedilla.dna.tokenizer import MASK
from cedilla.errors import InputError, MissingData
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
    card = zoo.card("mini")
    size = sum(p.numel() for p in model.parameters())
    assert card.parameters == pytest.approx(size / 1e6, abs=0.06)
    assert card.context == (model.config.max_tokens - 1) * model.config.k
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


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("minni", "did you mean mini"),
        ("nucleotide-transformer-v2-50", "nucleotide-transformer-v2-50m"),
        ("?", "see `cedilla models`"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(InputError, match="is neither in the zoo nor a directory") as caught:
        cedilla.load(name)
    assert near in str(caught.value)


def test_a_directory_without_a_model_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/config.json: not found"):
        cedilla.load(tmp_path / "empty")


def test_a_folder_named_like_a_model_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cedilla.load("mini").config.vocab_size == 75


def test_the_short_name_of_a_published_model_is_an_alias(tmp_path, monkeypatch, tiny):
    assert zoo.card("nucleotide-transformer-v2-50m") == zoo.card(V2_50M)
    assert zoo.card(V2_50M).repository == f"InstaDeepAI/{V2_50M}"
    tiny.rename(tmp_path / V2_50M)
    monkeypatch.setenv("CEDILLA_MODELS", str(tmp_path))
    assert cedilla.load("nucleotide-transformer-v2-50m").config == TINY


def test_weights_that_cannot_be_had_are_said_with_a_mend():
    with pytest.raises(MissingData, match="weights cannot be had") as caught:
        cedilla.load(V2_50M)
    assert f"$CEDILLA_MODELS/{V2_50M}" in str(caught.value)


def test_without_the_hub_client_the_mend_is_the_same(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingData, match=r"not on this machine; put .*CEDILLA_MODELS"):
        cedilla.load(V2_50M)


@pytest.mark.parametrize("name", ["cnn", "kmer"])
def test_a_baseline_is_not_loaded(name):
    with pytest.raises(InputError, match="is a baseline without pre-trained weights"):
        cedilla.load(name)


def test_encoders_are_loaded_or_built(tiny):
    assert isinstance(zoo.build("cnn"), DilatedCNN)
    assert zoo.build(tiny).config == TINY


def test_parameter_counts_on_the_cards_are_true():
    with torch.device("meta"):
        size = sum(p.numel() for p in DilatedCNN().parameters()) / 1e6
    assert zoo.card("cnn").parameters == pytest.approx(size, abs=0.05)
    published = [card for card in zoo.CARDS.values() if card.repository]
    assert len(published) == 8
    assert all(card.licence == zoo.NT_LICENCE for card in published)
    assert {card.context for card in published} == {5_994, 12_282}


def test_the_list_names_every_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    zoo.models()
    printed = capsys.readouterr().out
    assert all(name in printed for name in zoo.CARDS)
    assert np.all([licence in printed for licence in ("Apache-2.0", "CC BY-NC-SA 4.0")])
