"""Problems: how they read, and which of them stop a verb."""

from __future__ import annotations

import pytest

from cedilla.errors import InputError, MissingData, Problem, stop_on_errors

BETA = Problem(where="calls.csv line 812", what="beta 1.7 is outside [0, 1]", mend="correct it")


def test_a_problem_reads_as_place_fact_and_mend():
    assert str(BETA) == "calls.csv line 812: beta 1.7 is outside [0, 1]; correct it"
    assert str(Problem(where="a.csv", what="is empty")) == "a.csv: is empty"


def test_an_error_holds_all_problems_in_order():
    other = Problem(where="a.csv", what="is empty")
    error = InputError(problem for problem in (BETA, other))
    assert error.problems == [BETA, other]
    assert str(error) == f"{BETA}\n{other}"
    assert isinstance(error, ValueError)


def test_an_error_of_one_problem_keeps_its_type():
    error = MissingData.one(12, "cannot be had", "connect")
    assert type(error) is MissingData
    assert error.problems == [Problem(where="12", what="cannot be had", mend="connect")]


def test_warnings_and_notes_stop_nothing():
    soft = [Problem(where="a", what="b", severity=s) for s in ("warning", "note")]
    stop_on_errors(soft)
    stop_on_errors([])
    with pytest.raises(InputError) as caught:
        stop_on_errors([*soft, BETA])
    assert caught.value.problems == [BETA]
