"""The cards: shapes that give exactly the published numbers, and names that people would write."""

from __future__ import annotations

import re

import pytest
import torch

from cedilla.errors import InputError
from cedilla.models.cards import ALIASES, APACHE, CARDS, CC_BY_NC_SA, card
from cedilla.models.cnn import DilatedCNN
from cedilla.models.hugging_face import dead_weights
from cedilla.models.nucleotide_transformer import NucleotideTransformer
from cedilla.models.zoo import load

# layers, width, heads, feed-forward, vocabulary, rows of the position table, parameters of the
# masked language model, those of them named esm.*: as published, see cedilla.models.cards.
PUBLISHED = {
    "v2-50m-multi-species": (12, 512, 16, 2048, 4107, 2050, 55_904_972, 53_534_401),
    "v2-100m-multi-species": (22, 512, 16, 2048, 4107, 2050, 97_889_132, 95_518_561),
    "v2-250m-multi-species": (24, 768, 16, 3072, 4107, 2050, 235_120_780, 231_370_369),
    "v2-500m-multi-species": (29, 1024, 16, 4096, 4107, 2050, 498_345_436, 493_084_113),
    "v2-50m-3mer-multi-species": (12, 512, 16, 2048, 75, 2050, 51_772_172, 51_470_017),
    "500m-human-ref": (24, 1280, 20, 5120, 4105, 1002, 485_699_306, 478_798_561),
    "500m-1000g": (24, 1280, 20, 5120, 4105, 1002, 485_699_306, 478_798_561),
    "2.5b-1000g": (32, 2560, 20, 10240, 4105, 1002, 2_547_801_226, 2_530_727_041),
    "2.5b-multi-species": (32, 2560, 20, 10240, 4105, 1002, 2_547_801_226, 2_530_727_041),
}


def test_all_nine_are_there() -> None:
    names = {name.removeprefix("nucleotide-transformer-") for name, c in CARDS.items() if c.config}
    assert names == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_shape_gives_the_published_numbers(name: str) -> None:
    *shape, parameters, encoder = PUBLISHED[name]
    found = card(f"nucleotide-transformer-{name}")
    config = found.config
    assert config is not None
    assert shape == [
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
        config.max_position_embeddings,
    ]
    with torch.device("meta"):
        model = NucleotideTransformer(config)
        dead = dead_weights(config)
    counted = dict(model.named_parameters()) | {
        # Buffers are no parameters.
        n: w
        for n, w in dead.items()
        if not n.endswith("inv_freq")
    }
    assert sum(w.numel() for w in counted.values()) == found.parameters == parameters
    in_encoder = sum(w.numel() for n, w in counted.items() if n.startswith("esm."))
    assert in_encoder == found.encoder_parameters == encoder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_says_where_it_is_from_and_what_it_reads(name: str) -> None:
    found = card(f"nucleotide-transformer-{name}")
    version = 2 if name.startswith("v2") else 1
    k = 3 if "3mer" in name else 6
    assert found.config is not None
    assert (found.config.version, found.config.k) == (version, k)
    assert found.config.rotary == found.config.gated == (version == 2)
    assert found.config.token_dropout == (version == 1)
    assert found.context == {1: 5_994, 2: 12_282 // (6 // k)}[version]
    assert found.licence == CC_BY_NC_SA
    assert found.repository == f"InstaDeepAI/nucleotide-transformer-{name}"
    assert re.fullmatch(r"([0-9a-f]{40})?", found.revision)
    assert found.revision or not found.files
    for known in found.files.values():
        assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert known.bytes > 0


def test_weights_of_known_length_are_long_enough_for_their_model() -> None:
    for found in CARDS.values():
        for names in (("model.safetensors",), [n for n in found.files if n.endswith(".bin")]):
            held = [found.files[name].bytes for name in names if name in found.files]
            if held:
                assert 0 < sum(held) - 4 * found.parameters < 300_000


def test_what_comes_with_cedilla_is_counted_too() -> None:
    model = load("mini")
    assert card("mini").parameters == sum(p.numel() for p in model.parameters())
    assert card("mini").context == (model.config.max_tokens - 1) * model.config.k
    with torch.device("meta"):
        assert card("cnn").parameters == sum(p.numel() for p in DilatedCNN().parameters())
    assert {card(name).licence for name in ("mini", "cnn", "kmer")} == {APACHE}


def test_short_names_and_names_of_repositories_are_aliases() -> None:
    full = "nucleotide-transformer-v2-50m-multi-species"
    for name in ("nucleotide-transformer-v2-50m", f"InstaDeepAI/{full}", full):
        assert card(name).name == full
    assert not ALIASES.keys() & CARDS.keys()


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("minni", "did you mean mini"),
        ("v2-50", "did you mean nucleotide-transformer-v2-50m or"),
        ("nt-v2-500m", "did you mean nucleotide-transformer-v2-500m or"),
        ("500m-human", "did you mean nucleotide-transformer-500m-human-ref"),
        ("InstaDeepAI/nucleotide-transformer-2.5b", "did you mean nucleotide-transformer-2.5b or"),
        ("?", "see `cedilla models`"),
    ],
)
def test_an_unknown_name_gets_the_nearest(word: str, near: str) -> None:
    with pytest.raises(InputError, match="is neither in the zoo nor a directory") as caught:
        card(word)
    assert near in str(caught.value)


def test_short_names_are_known_too():
    whole = "nucleotide-transformer-v2-50m-multi-species"
    for short in ("v2-50m", "v2-50m-multi-species", f"InstaDeepAI/{whole}"):
        assert card(short).name == whole
    assert card("500m-human-ref").name == "nucleotide-transformer-500m-human-ref"
    assert card("v2-50m-3mer").config.k == 3
