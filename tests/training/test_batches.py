"""Batches: every row once, on the strand that was asked for, in an order that the seed gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna.alphabet import reverse_complement
from cedilla.dna.tokenizer import PAD, Tokenizer
from cedilla.errors import InputError
from cedilla.training.batches import SequenceData

TOKENIZER = Tokenizer(1, max_tokens=500)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), n)) for n in rng.integers(1, 400, 230)]
    features = np.arange(460, dtype=float).reshape(230, 2)
    return SequenceData(sequences, np.arange(230) % 3, TOKENIZER, features=features), sequences


def text(batch, row):
    return TOKENIZER.decode(batch.ids[row][batch.mask[row]])


def test_a_batch_holds_its_rows_on_their_strands(rows):
    data, sequences = rows
    batch = data.batch(np.array([5, 2, 9]), np.array([0, 1, 1]))
    assert text(batch, 0) == sequences[5]
    assert text(batch, 1) == reverse_complement(sequences[2])
    assert text(batch, 2) == reverse_complement(sequences[9])
    assert batch.labels.tolist() == [2, 2, 0]
    assert batch.features.tolist() == [[10, 11], [4, 5], [18, 19]]
    assert batch.rows.tolist() == [5, 2, 9]
    assert len(batch) == 3
    assert (batch.ids[~batch.mask] == PAD).all()


def test_an_epoch_has_every_row_once_in_the_seeds_order(rows):
    data, _ = rows

    def order(seed):
        batches = list(data.shuffled(4, np.random.default_rng(seed), strands=True))
        assert all(len(b) <= 4 for b in batches)
        return np.concatenate([b.rows for b in batches]).tolist()

    assert sorted(order(0)) == list(range(230))
    assert order(0) == order(0) != order(1)


def test_both_strands_are_seen_in_training_unless_one_is_asked_for(rows):
    data, sequences = rows

    def forward(strands):
        batches = data.shuffled(8, np.random.default_rng(0), strands=strands)
        return np.mean([text(b, i) == sequences[r] for b in batches for i, r in enumerate(b.rows)])

    assert forward(strands=False) == 1
    assert 0.35 < forward(strands=True) < 0.65


def test_batches_hold_sequences_of_similar_length(rows):
    data, _ = rows
    batches = list(data.shuffled(8, np.random.default_rng(0), strands=False))
    pads = sum((~b.mask).sum().item() for b in batches) / sum(b.mask.numel() for b in batches)
    assert pads < 0.1
    # Not sorted as a whole: the lengths of batches come in any order.
    longest = [b.ids.size(1) for b in batches]
    assert longest != sorted(longest)


def test_prediction_starts_with_the_longest(rows):
    data, sequences = rows
    batches = list(data.ordered(32))
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == list(range(230))
    widths = [b.ids.size(1) for b in batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 1 + max(map(len, sequences))
    assert text(next(data.ordered(32, strand=1)), 0) == reverse_complement(max(sequences, key=len))


def test_long_sequences_are_refused_once_and_by_name():
    short = Tokenizer(3, max_tokens=4)
    sequences = ["ACG" * 5, "ACG", "ACG" * 6]
    names = ["a.csv line 2", "a.csv line 3", "a.csv line 4"]
    with pytest.raises(InputError) as caught:
        SequenceData(sequences, np.zeros(3), short, names=names)
    assert [p.where for p in caught.value.problems] == ["a.csv line 2", "a.csv line 4"]
    with pytest.raises(InputError, match="sequence 1: has 6 tokens; the model takes 4"):
        SequenceData(sequences, np.zeros(3), short)


@given(sequence=st.text("ACGTN", max_size=40))
def test_both_strands_have_the_same_number_of_tokens(sequence):
    both = Tokenizer(3).encode_ragged([sequence, reverse_complement(sequence)])
    assert len(both[0]) == len(both[1])
