"""The alphabet: what is a base, and how it is cleaned, complemented and stored."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cedilla.dna import alphabet

CODES = "RYSWKMBDHV"
any_dna = st.text(alphabet.IUPAC + alphabet.IUPAC.lower(), max_size=60)
clean_dna = st.text(alphabet.BASES, max_size=60)


def test_case_u_and_iupac_codes_are_cleaned():
    assert alphabet.clean("acgtunACGTUN") == "ACGTTNACGTTN"
    assert alphabet.clean(CODES + CODES.lower()) == "N" * 20


@given(any_dna)
def test_cleaning_keeps_the_length_and_is_done_once(sequence):
    cleaned = alphabet.clean(sequence)
    assert len(cleaned) == len(sequence)
    assert set(cleaned) <= set(alphabet.BASES)
    assert alphabet.clean(cleaned) == cleaned
    assert alphabet.first_forbidden(sequence) is None


def test_the_first_forbidden_character_is_found():
    assert alphabet.first_forbidden("ACXGZ") == 2
    for character in " -*.<\n1é":
        assert alphabet.first_forbidden(f"ACGT{character}") == 4
    assert alphabet.first_forbidden("") is None


def test_ambiguous_codes_are_counted_and_n_is_not_one():
    assert alphabet.count_ambiguous("ACGTUNacgtun") == 0
    assert alphabet.count_ambiguous(f"A{CODES}n{CODES.lower()}") == 20


def test_the_other_strand():
    assert alphabet.reverse_complement("AACGTN") == "NACGTT"


@given(clean_dna)
def test_the_other_strand_of_the_other_strand_is_the_first(sequence):
    assert alphabet.reverse_complement(alphabet.reverse_complement(sequence)) == sequence


@given(clean_dna)
def test_codes_number_the_bases(sequence):
    codes = alphabet.encode(sequence)
    assert codes.dtype == np.uint8
    assert "".join(alphabet.BASES[code] for code in codes) == sequence


@given(clean_dna.filter(lambda s: "N" not in s))
def test_three_minus_a_code_is_its_complement(sequence):
    other = alphabet.encode(alphabet.reverse_complement(sequence))
    assert np.array_equal(other, 3 - alphabet.encode(sequence)[::-1])
