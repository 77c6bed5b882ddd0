import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedilla.methylation.probes import are_probe_ids


@pytest.mark.parametrize(
    "name",
    [
        *("cg00000029", "ch.22.909671F", "ch.X.7566543R", "rs877309"),
        *("cg00000029_TC21", "cg06373096_TC110", "rs10033147_BO11", "ch.1.131529F_TC11"),
        *("nv-GRCh38-chr17-7675160-7675160-G-A", "nv-GRCh38-chr1-114705278-114705278-C-T_BC11"),
        "nv-GRCh38-chr17-7675160-7675160-G-A1",
    ],
)
def test_probe_ids_of_all_arrays(name):
    assert are_probe_ids(pd.Series([name])).all()


@pytest.mark.parametrize(
    "name",
    [
        *("cg0000029", "cg000000299", "CG00000029", "cg00000029 ", "xcg00000029", "cg0000002O"),
        *("ch.22.909671", "ch.23.909671F", "ch.MT.1F", "rs", "rs12a", "cg00000029_TC", "", None),
        *("cg00000029_XC11", "cg00000029_TC01", "cg00000029_TC21_TC21", "cg00000029\n", "1.0"),
    ],
)
def test_what_is_no_probe_id(name):
    assert not are_probe_ids(pd.Series([name], dtype="object")).any()


digits = st.text("0123456789", min_size=1, max_size=9)
chromosomes = st.sampled_from([*map(str, range(1, 23)), "X", "Y"])
names = st.one_of(
    st.integers(0, 99_999_999).map(lambda n: f"cg{n:08d}"),
    digits.map(lambda d: f"rs{d}"),
    st.builds("ch.{}.{}{}".format, chromosomes, digits, st.sampled_from("FR")),
)
suffixes = st.one_of(
    st.just(""),
    st.builds("_{}{}{}".format, st.sampled_from("TB"), st.sampled_from("CO"), st.integers(1, 2110)),
)


@given(names, suffixes)
def test_every_id_of_the_grammar_is_accepted(name, suffix):
    assert are_probe_ids(pd.Series([name + suffix])).all()


@given(names, suffixes, st.integers(0, 60), st.sampled_from(" ,;\t-/éß#"))
def test_an_id_with_a_foreign_character_is_refused(name, suffix, at, character):
    whole = name + suffix
    at %= len(whole) + 1
    assert not are_probe_ids(pd.Series([whole[:at] + character + whole[at:]])).any()


@given(st.integers(0, 10**12))
def test_cg_takes_eight_digits_and_no_other_number(n):
    assert are_probe_ids(pd.Series([f"cg{n}"])).all() == (len(str(n)) == 8)
