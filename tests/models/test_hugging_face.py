"""Hugging Face's layout: byte for byte that of the published files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cedilla.models.cards import card
from cedilla.models.hugging_face import CODE, dead_weights, settings, tokenizer_files
from cedilla.models.nucleotide_transformer import NTConfig
from cedilla.models.weights import read_config, wanted_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
# SHA-256 of published files, from https://github.com/tcztzy/evo.cpp.
SPECIAL = "d6dc30bf018166daab248b0abf7efda6fd1b1e0a2d1bee5b31b23db2ebdaee77"
V1_VOCABULARY = "f1b544e27897936b50bbd925850fa8a08b421c33bb9c26e3711c140c061d0d4c"
V2_VOCABULARY = "c00e0ad166d6ab3f7540ebc92270392e581bb3106763412f29034b49323e1052"
V1_TOKENIZER = "e516a38aaf16ce0e84ce178e5f23b98f8b9993bea1a0e2166326efb4e8440214"
V2_TOKENIZER = "253d338919eba938e50b776f3243cc739462c207fe64e3d2e81cc5e681bee45b"
TEXTS = {
    "2.5b-multi-species": (V1_VOCABULARY, V1_TOKENIZER),
    "v2-100m-multi-species": (V2_VOCABULARY, V2_TOKENIZER),
    "v2-50m-3mer-multi-species": (
        "0976e2b4722307d16c669e2daa57f5912fc7f62e08389540751b5474c93dcfd0",
        V2_TOKENIZER,
    ),
}
SETTINGS = {
    "2.5b-multi-species": "7d003a6f278562634e87e63a51a1c2c685dc495c35e16cc309e6a5d912954988",
    "v2-50m-multi-species": "e20f497248c7cb264c7cd4582dbcfd52dc4cbf74a97fc711559b8c8f71c635db",
    "v2-100m-multi-species": "82399c099aaacdc69e1a3dcdb95e62ff5523a0f9b46cfc5bd960f4c7dc390b29",
    "v2-250m-multi-species": "234c9a119d8b2b9af2f64b13c2204b559b7a6b6e61dee37af916e0d7e029d154",
}


def shape(name: str) -> NTConfig:
    config = card(f"nucleotide-transformer-{name}").config
    assert config is not None
    return config


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", TEXTS)
def test_tokenizer_files_are_the_published_ones(name: str) -> None:
    files = {file: digest(text) for file, text in tokenizer_files(shape(name)).items()}
    vocabulary, tokenizer = TEXTS[name]
    assert files == {
        "vocab.txt": vocabulary,
        "special_tokens_map.json": SPECIAL,
        "tokenizer_config.json": tokenizer,
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_published_ones_but_for_the_place_of_the_code(name: str) -> None:
    text = json.dumps(settings(shape(name), torch.float32), indent=2) + "\n"
    assert (f"{CODE}--" in text) == name.startswith("v2")
    assert digest(text.replace(f"{CODE}--", "")) == SETTINGS[name]


@pytest.mark.parametrize("name", ["nt_v1_tiny", "nt_v2_tiny"])
def test_weights_are_those_that_the_published_code_writes(name: str) -> None:
    config = read_config(GOLDEN / name / "config.json")
    golden = {n: tuple(w.shape) for n, w in load_file(GOLDEN / name / "model.safetensors").items()}
    dead = dead_weights(config)
    assert wanted_shapes(config) | {n: tuple(w.shape) for n, w in dead.items()} == golden


def test_rotary_frequencies_are_those_of_the_published_code_bit_for_bit() -> None:
    golden = load_file(GOLDEN / "nt_v2_tiny" / "model.safetensors")
    dead = dead_weights(read_config(GOLDEN / "nt_v2_tiny" / "config.json"))
    frequencies = {n: w for n, w in dead.items() if n.endswith("inv_freq")}
    assert len(frequencies) == 3
    assert all(torch.equal(w, golden[n]) for n, w in frequencies.items())


def test_what_is_written_is_read_as_the_same_configuration() -> None:
    for name in (*SETTINGS, "v2-50m-3mer-multi-species", "500m-human-ref"):
        config = shape(name)
        again = NTConfig.from_dict(settings(config, torch.bfloat16))
        assert again.gated == config.gated
        for key in config.__dataclass_fields__.keys() - {"add_bias_fnn"}:
            assert getattr(again, key) == getattr(config, key)
