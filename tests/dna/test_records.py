"""Findings: the first of each kind by name, the rest by number."""

from __future__ import annotations

from cedilla.dna.records import Findings, Record


def test_many_problems_of_a_kind_are_counted() -> None:
    findings = Findings()
    for line in range(1, 1001):
        findings.add("odd", where=f"x line {line}", what="is odd", mend="even it")
    findings.add("old", where="x line 7", what="is old", mend="")
    assert [str(p) for p in findings.problems("x")] == [
        *(f"x line {n}: is odd; even it" for n in range(1, 6)),
        "x: the same holds for 995 more (1,000 in all); even it",
        "x line 7: is old",
    ]
    assert not Findings().problems("x")


def test_a_place_has_its_line_where_there_are_lines() -> None:
    assert Record(where="", id="", sequence="A" * 2000).place(1233) == "position 1,234"
    record = Record(where="", id="", sequence="", line=10, ends=[3, 3, 5])
    assert [record.place(i) for i in (0, 2, 3)] == [
        "position 1 (line 11)",
        "position 3 (line 11)",
        "position 4 (line 13)",
    ]
