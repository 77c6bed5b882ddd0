"""What Cedilla knows about the models that it knows by name.

The shapes of the Nucleotide Transformers are those of their published configurations. A published
file holds more weights than the model uses: `parameters` counts a file's as InstaDeep does, with
the two dead ones, a contact head (layers x heads + 1) and, in version 2, a position table beside
the rotary positions. Buffers (position ids, rotary frequencies) are not counted.

Sources: Dalla-Torre et al., Nature Methods 2024, and the model cards at
https://huggingface.co/InstaDeepAI. Revisions, and the hashes of weight files at them, are those
that public projects have pinned and checked: https://github.com/tcztzy/evo.cpp for v2-50m,
v2-100m, v2-250m, v2-50m-3mer and 2.5b-multi-species. Where none is known, the first download pins
what it finds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cedilla.errors import InputError
from cedilla.models.nucleotide_transformer import NTConfig

APACHE, CC_BY_NC_SA = "Apache-2.0", "CC BY-NC-SA 4.0"
PUBLISHER = "InstaDeepAI"
FAMILY, DATA = "nucleotide-transformer-", "-multi-species"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileHash:
    """A file by its length and SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What is known about a model.

    config: the shape; None for baselines and for the embedded model, whose file has it.
    parameters: of the masked language model, as its file holds them.
    encoder_parameters: those of `parameters` whose names begin with ``esm.``; 0 if not counted.
    context: the longest input in bases.
    repository, revision: where the weights are published, if they are not part of Cedilla.
    files: weight files at that revision.
    note: what else a user should know.
    """

    name: str
    summary: str
    parameters: int
    context: int
    licence: str
    kind: Literal["language model", "baseline"] = "language model"
    config: NTConfig | None = None
    encoder_parameters: int = 0
    repository: str = ""
    revision: str = ""
    files: Mapping[str, FileHash] = field(default_factory=dict)
    note: str = ""


def v1_shape(layers: int, width: int, heads: int, ffn: int) -> NTConfig:
    """The configuration of a version 1 model: a learned position table and token dropout."""
    return NTConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=ffn,
        vocab_size=4105,
        max_position_embeddings=1002,
        position_embedding_type="absolute",
        token_dropout=True,
    )


def v2_shape(
    layers: int, width: int, ffn: int, *, vocabulary: int = 4107, eps: float = 1e-12
) -> NTConfig:
    """The configuration of a version 2 model: rotary positions, a SwiGLU, 16 heads."""
    return NTConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=16,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        layer_norm_eps=eps,
    )


def _published(
    name: str,
    data: str,
    config: NTConfig,
    counts: tuple[int, int],
    *,
    revision: str = "",
    files: Mapping[str, tuple[int, str]] | None = None,
    note: str = "",
) -> ModelCard:
    name = f"{FAMILY}{name}"
    return ModelCard(
        name=name,
        summary=f"NT v{config.version}, {data}",
        parameters=counts[0],
        encoder_parameters=counts[1],
        context=(config.max_tokens - 1) * config.k,
        licence=CC_BY_NC_SA,
        config=config,
        repository=f"{PUBLISHER}/{name}",
        revision=revision,
        files={k: FileHash(bytes=b, sha256=h) for k, (b, h) in (files or {}).items()},
        note=note,
    )


_V1_500M = v1_shape(24, 1280, 20, 5120)
_V1_2500M = v1_shape(32, 2560, 20, 10240)
_CARDS = [
    ModelCard(
        name="mini",
        summary="embedded: a hybrid over single bases, human and four other species",
        parameters=705_791,
        context=100_000,
        licence=APACHE,
    ),
    _published(
        "v2-50m-multi-species",
        "850 species",
        v2_shape(12, 512, 2048),
        (55_904_972, 53_534_401),
        revision="81b29e5786726d891dbf929404ef20adca5b36f1",
        files={
            "model.safetensors": (
                223_642_688,
                "17e75af297556ea56828716d8aa539e8f12b8b625547204b74171ab91aa33569",
            ),
            "pytorch_model.bin": (
                223_682_957,
                "3b177d140664f3157ecd262825b5caca5855c10ae9c1ea43445c349f5e09c0b8",
            ),
        },
    ),
    _published(
        "v2-100m-multi-species",
        "850 species",
        v2_shape(22, 512, 2048),
        (97_889_132, 95_518_561),
        revision="f34324c6fde36a4f635f0f1f06cac5d25acd6798",
        files={
            "model.safetensors": (
                391_597_600,
                "60d5fe10281f7bf0436e990a55a3cf635eeabaf63b0e3ca4dc73838264d329b8",
            ),
            "pytorch_model.bin": (
                391_669_605,
                "8b3053eea1b7139144922b5291831128d3bf510737cfad90895a083d444d1fb6",
            ),
        },
    ),
    _published(
        "v2-250m-multi-species",
        "850 species",
        v2_shape(24, 768, 3072),
        (235_120_780, 231_370_369),
        revision="c0f0359229f36ff6bc3a021247eefe0a9c344bd1",
        files={
            "pytorch_model.bin": (
                940_606_173,
                "ad9be6f4ca8c744dde5794a0cdc443eb2d76d776d9da2377f6d9fe4f4d96fcd9",
            ),
        },
    ),
    _published(
        "v2-500m-multi-species",
        "850 species",
        v2_shape(29, 1024, 4096),
        (498_345_436, 493_084_113),
        revision="06615c1660c892fc199840c18123f8385b3542a8",
    ),
    _published(
        "v2-50m-3mer-multi-species",
        "850 species, 3-mers",
        v2_shape(12, 512, 2048, vocabulary=75, eps=1e-5),
        (51_772_172, 51_470_017),
        revision="ff82eaf931e483feeb6bf7ecf03f1febe6b2fe76",
        files={
            "pytorch_model.bin": (
                207_152_202,
                "df558322bba2e3eb9d4ef0ad0b763c2d6578f7fb05e5d19358fe7a30ce1bef61",
            ),
        },
        note="its LayerNorms use epsilon 1e-5, those of the other published models 1e-12",
    ),
    _published("500m-human-ref", "human reference", _V1_500M, (485_699_306, 478_798_561)),
    _published("500m-1000g", "3,202 human genomes", _V1_500M, (485_699_306, 478_798_561)),
    _published("2.5b-1000g", "3,202 human genomes", _V1_2500M, (2_547_801_226, 2_530_727_041)),
    _published(
        "2.5b-multi-species",
        "850 species",
        _V1_2500M,
        (2_547_801_226, 2_530_727_041),
        revision="b746b125aacd1b0970c05a32fd71ba726754542e",
        files={
            "pytorch_model-00001-of-00002.bin": (
                9_913_283_486,
                "9333a3ceaf85e027547e73068476ecb79b1ac4e5bae91abcdae7f7f7619d7092",
            ),
            "pytorch_model-00002-of-00002.bin": (
                278_112_047,
                "d599e301221170496d93158cf46f8e5872621f31fc16e570bc947b27f9917979",
            ),
            "pytorch_model.bin.index.json": (
                46_039,
                "71088b187400fee5eec7f6e866d77d22fcd1dd38b930b1359e22d3fd0e284203",
            ),
        },
    ),
    ModelCard(
        name="cnn",
        summary="dilated residual CNN over bases, from scratch",
        parameters=324_464,
        context=100_000,
        licence=APACHE,
        kind="baseline",
    ),
    ModelCard(
        name="kmer",
        summary="logistic regression on canonical 4- to 6-mer counts",
        parameters=0,
        context=1_000_000,
        licence=APACHE,
        kind="baseline",
    ),
]
CARDS = {card.name: card for card in _CARDS}
# A published name may go without the family's and without the data that most have in common.
ALIASES = {
    alias: card.name
    for card in _CARDS
    if card.repository
    for whole in (card.name, card.name.removesuffix(DATA))
    for alias in (card.repository, whole, whole.removeprefix(FAMILY))
    if alias != card.name
}


def card(name: str) -> ModelCard:
    """The card of a model by name or alias; an unknown name gets the nearest known ones."""
    name = ALIASES.get(name, name)
    if name not in CARDS:
        near = _nearest(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `cedilla models`"
        raise InputError.one(f"model {name!r}", "is neither in the zoo nor a directory", hint)
    return CARDS[name]


def _nearest(word: str) -> list[str]:
    """Up to three known names like `word`; what all published names begin with does not count."""
    whole = [name for name in ALIASES if name.startswith(FAMILY)]
    short = {_short(name): name for name in [*CARDS, *whole]}
    return [short[s] for s in difflib.get_close_matches(_short(word), short, n=3, cutoff=0.4)]


def _short(name: str) -> str:
    return name.removeprefix(f"{PUBLISHER}/").removeprefix(FAMILY)
