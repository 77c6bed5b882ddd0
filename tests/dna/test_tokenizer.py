"""The tokenizer: the family's ids, its rules at N and at the end, and what it refuses."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna import alphabet
from cedilla.dna import tokenizer as tokenizer_module
from cedilla.dna.tokenizer import CLS, MASK, PAD, UNK, Tokenizer, pad
from cedilla.errors import InputError
from cedilla.models.cnn import CNNConfig, DilatedCNN
from cedilla.models.nucleotide_transformer import NTConfig, NucleotideTransformer

V1, V2 = Tokenizer(version=1), Tokenizer(version=2)
TOKENIZERS = [Tokenizer(k, version=version) for k in (1, 3, 6) for version in (1, 2)]
any_dna = st.text(alphabet.IUPAC + alphabet.IUPAC.lower(), max_size=80)


blocks = st.sampled_from([1, 64, tokenizer_module.BLOCK])
bases = st.text("ACGT", max_size=40)
text_of_any_kind = st.lists(
    st.one_of(
        bases,
        bases.map(str.lower),
        st.text("Nn", min_size=1, max_size=12),
        st.text(alphabet.IUPAC + alphabet.IUPAC.lower(), max_size=8),
        st.sampled_from(["<mask>", "<cls>", "<unk>", "<pad>"]),
    ),
    max_size=6,
).map("".join)
forbidden = st.sampled_from(["X", "-", " ", "é", "𝄞", "\x83", "\xc0", "?", "@", "`", "\0", "<gap>"])


def plainly(tokenizer: Tokenizer, sequence: str) -> list[int]:
    """The ids by the words of the rule, one token at a time."""
    tokens = ["<cls>"]
    for piece in re.split("(<[a-z]+>)", sequence):
        if piece in tokenizer.special:
            tokens.append(piece)
            continue
        for run in re.findall("N+|[^N]+", alphabet.clean(piece)):
            while len(run) >= tokenizer.k and run[0] != "N":
                tokens.append(run[: tokenizer.k])
                run = run[tokenizer.k :]  # noqa: PLW2901 - the run is used up from the left
            tokens += run
    # A 1-mer and a left-over base are written alike; with k = 1 nothing is left over.
    return [tokenizer.vocabulary.index(token) for token in tokens]


def ids_of(tokenizer: Tokenizer, sequence: str) -> list[int]:
    return tokenizer.encode([sequence])[0][0].tolist()


@pytest.mark.parametrize(
    ("sequence", "ids"),
    [
        ("ATTCCGATTCCGATTCCG", [3, 369, 369, 369]),
        (
            "ACGTGTACNTGCACGGANCGACTAGTCTGA",
            [3, 739, 4102, 4104, 4106, 1937, 4105, 4102, 4106, 2858, 3490],
        ),
        ("ACCTGA<mask>TTCTGAGTC", [3, 674, 2, 1442, 4105, 4103, 4104]),
    ],
)
def test_ids_of_version_2_are_the_published_ones(sequence, ids):
    assert ids_of(V2, sequence) == ids
    # Version 1 has two special tokens less in front of its k-mers.
    assert ids_of(V1, sequence) == [i if i <= CLS else i - 2 for i in ids]


def test_version_1_knows_its_published_id():
    assert ids_of(V1, "ATTCCG") == [3, 367]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"k{t.k}v{t.version}")
def test_vocabulary_and_ids_agree(tokenizer):
    special = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"][: 2 + 2 * tokenizer.version]
    kmers = ["".join(bases) for bases in product("ATCG", repeat=tokenizer.k)]
    assert tokenizer.vocabulary == [*special, *kmers, "A", "T", "C", "G", "N"]
    assert len(tokenizer) == len(tokenizer.vocabulary)
    assert tuple(map(special.index, ("<unk>", "<pad>", "<mask>", "<cls>"))) == (UNK, PAD, MASK, CLS)
    first = len(special)
    for number in (0, 1, len(kmers) - 1):
        assert ids_of(tokenizer, kmers[number]) == [CLS, first + number]
    assert ids_of(tokenizer, "N") == [CLS, len(tokenizer) - 1]
    for number, name in enumerate(special):
        assert ids_of(tokenizer, name) == [CLS, number]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"k{t.k}v{t.version}")
@given(sequence=any_dna)
def test_decoding_gives_the_cleaned_sequence(tokenizer, sequence):
    ids, mask = tokenizer.encode([sequence])
    cleaned = alphabet.clean(sequence)
    assert tokenizer.decode(ids[0]) == cleaned
    tokens = tokenizer.tokenize(sequence)
    # The rules, said another way: k-mers from the left of each run, then single bases, N alone.
    k = tokenizer.k
    runs = (
        [run[i : i + k] for i in range(0, len(run) - k + 1, k)] + list(run[len(run) // k * k :])
        if run[0] != "N"
        else list(run)
        for run in re.findall("N+|[^N]+", cleaned)
    )
    # A left-over base and a 1-mer are written alike, so ids tell more than tokens for k = 1.
    assert tokens == ["<cls>", *(token for run in runs for token in run)]
    assert mask.all()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"k{t.k}v{t.version}")
@given(data=st.data())
def test_ids_of_whole_kmers_agree_with_encode(tokenizer, data):
    kmer = st.text("ACGT", min_size=tokenizer.k, max_size=tokenizer.k)
    kmers = data.draw(st.lists(kmer, min_size=1, max_size=8))
    letters = np.frombuffer("".join(kmers).encode(), dtype=np.uint8).reshape(-1, tokenizer.k)
    assert [CLS, *tokenizer.kmer_ids(letters).tolist()] == ids_of(tokenizer, "".join(kmers))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: f"k{t.k}v{t.version}")
@given(block=blocks, sequences=st.one_of(st.lists(bases), st.lists(text_of_any_kind)))
def test_every_batch_is_read_by_the_rule(tokenizer, block, sequences):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "BLOCK", block)
        rows = tokenizer.encode_ragged(sequences)
    assert [row.tolist() for row in rows] == [plainly(tokenizer, s) for s in sequences]
    assert all(row.dtype == np.int32 for row in rows)


@pytest.mark.parametrize("k", range(1, 9))
def test_every_kmer_size_that_fits_is_read(k):
    rng = np.random.default_rng(k)
    text = "".join(rng.choice(list("ACGT"), 5 * k + k - 1))
    tokenizer = Tokenizer(k)
    for sequence in (text, text.lower() + "N" + text):
        assert tokenizer.encode_ragged([sequence])[0].tolist() == plainly(tokenizer, sequence)


@pytest.mark.parametrize("k", [0, 9])
def test_other_kmer_sizes_are_refused(k):
    with pytest.raises(ValueError, match="k is from 1 to 8"):
        Tokenizer(k)


@given(
    block=blocks,
    parts=st.lists(
        st.tuples(text_of_any_kind, st.one_of(st.just(""), forbidden), text_of_any_kind)
    ),
)
def test_the_first_forbidden_character_of_each_sequence_is_named(block, parts):
    wanted = [
        f"sequence {i}: {bad[0]!r} at position {len(before) + 1} is neither a nucleotide code nor "
        "a special token; remove it, or write N for an unknown base"
        for i, (before, bad, _) in enumerate(parts, start=1)
        if bad
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "BLOCK", block)
        found = []
        try:
            V2.encode_ragged(["".join(part) for part in parts])
        except InputError as error:
            found = list(map(str, error.problems))
    assert found == wanted


def test_rows_do_not_share_a_token():
    first, second = V2.encode_ragged(["ATTCCG", "ATTCCG"])
    first[:] = PAD
    assert second.tolist() == [CLS, 369]


def test_lower_case_u_and_iupac_codes_are_read():
    assert ids_of(V2, "attccg") == ids_of(V2, "ATTCCG")
    assert ids_of(V2, "AUUCCG") == ids_of(V2, "ATTCCG")
    assert ids_of(V2, "ATTCCGRYAC") == ids_of(V2, "ATTCCGNNAC")


def test_a_batch_is_padded_on_the_right():
    ids, mask = V2.encode(["ATTCCGA", "", "NN"])
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert ids.tolist() == [[3, 369, 4102], [3, PAD, PAD], [3, 4106, 4106]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]


def test_an_empty_batch_has_no_rows():
    ids, mask = V2.encode([])
    assert ids.shape == mask.shape == (0, 0)
    assert pad([])[0].shape == (0, 0)


def test_all_sequences_with_forbidden_characters_are_named_at_once():
    bad = ["ACGT", "ACXT", "AC GT", "ACGTACGT<mask>AC-T", "<gap>", "ACGé", "<MASK>"]
    with pytest.raises(InputError) as caught:
        V2.encode(bad)
    assert [(p.where, p.what.split(" is ")[0]) for p in caught.value.problems] == [
        ("sequence 2", "'X' at position 3"),
        ("sequence 3", "' ' at position 3"),
        ("sequence 4", "'-' at position 17"),
        ("sequence 5", "'<' at position 1"),
        ("sequence 6", "'é' at position 4"),
        ("sequence 7", "'<' at position 1"),
    ]


def test_long_sequences_are_all_named_or_truncated():
    short = Tokenizer(3, max_tokens=4)
    batch = ["ACGACGACG", "ACG" * 5, "ACG", "NNNN"]
    with pytest.raises(InputError) as caught:
        short.encode(batch)
    assert [str(p) for p in caught.value.problems] == [
        "sequence 2: has 6 tokens; the model takes 4; cut it, or pass truncate=True",
        "sequence 4: has 5 tokens; the model takes 4; cut it, or pass truncate=True",
    ]
    ids, mask = short.encode(batch, truncate=True)
    assert ids.shape == (4, 4)
    assert mask.sum(1).tolist() == [4, 4, 2, 4]
    assert short.encode(batch[:1])[0].shape == (1, 4)  # exactly as long as allowed
    assert [len(row) for row in short.encode_ragged(batch)] == [4, 6, 2, 5]


def test_many_long_sequences_are_counted_not_listed():
    with pytest.raises(InputError) as caught:
        Tokenizer(3, max_tokens=4).encode(["ACG" * 5] * 10_000)
    assert len(caught.value.problems) == 6
    assert "10,000 in all" in str(caught.value)


def test_one_string_is_no_batch():
    with pytest.raises(TypeError, match="list of sequences"):
        V2.encode("ACGT")


def test_decoding_drops_special_tokens():
    ids = ids_of(V2, "ACCTGA<mask>TTCTGAGTC")
    assert V2.decode([PAD, *ids, PAD]) == "ACCTGATTCTGAGTC"


def test_a_model_has_the_tokenizer_of_its_configuration():
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for vocab_size, version, k in ((4105, 1, 6), (4107, 2, 6), (75, 2, 3), (73, 1, 3)):
        config = NTConfig(
            **shape, intermediate_size=8, vocab_size=vocab_size, max_position_embeddings=34
        )
        found = Tokenizer.for_model(NucleotideTransformer(config))
        assert (found.version, found.k, found.max_tokens) == (version, k, 32)
        assert len(found) == vocab_size
    cnn = CNNConfig(hidden_size=4, num_hidden_layers=1)
    assert len(Tokenizer.for_model(DilatedCNN(cnn))) == cnn.vocab_size
