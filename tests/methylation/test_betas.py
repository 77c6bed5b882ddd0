import numpy as np

from cedilla.methylation.check import check


def betas(*values: object) -> str:
    rows = [f"cg{k:08d},{value}" for k, value in enumerate(values)]
    return "\n".join(["probe_id,beta", *rows]) + "\n"


def test_betas_outside_their_range_and_what_is_no_number(table, errors_of):
    path = table(betas(0, 1, 1.7, -0.1, "0.5x", '"0,85"', "inf", "-inf", "NA", "", 0.5))
    errors = errors_of(path)
    assert sorted(error.split(";")[0] for error in errors) == [
        "line 4: beta 1.7 is outside [0, 1]",
        "line 5: beta -0.1 is outside [0, 1]",
        "line 6: beta '0.5x' is not a number",
        "line 7: beta '0,85' is not a number",
        "line 8: beta inf is infinite",
        "line 9: beta -inf is infinite",
    ]


def test_ten_thousand_bad_betas_are_counted_not_listed(table, errors_of):
    errors = errors_of(table(betas(*[1.5] * 10_000)))
    assert len(errors) < 10
    assert "10,000 in all" in errors[-1]


def test_percent_is_one_finding_and_what_is_outside_percent_is_too(table, errors_of):
    values = [0, 0, 0, 85.3, 100, 0.4, 12, 99, 250]
    path = table(betas(*values))
    percent, outside = errors_of(path)
    assert percent == "betas look like percent (up to 100); pass --percent"
    assert outside.startswith("line 10: beta 250 is outside [0, 100]")
    (only,) = errors_of(path, percent=True)
    assert only == outside
    check(table(betas(*values[:-1])), percent=True)


def test_fractions_called_percent_are_noticed(table, remarks_of):
    path = table(betas(0.1, 0.9, 0.4))
    assert "no beta is above 1" in remarks_of(path, "warning", percent=True)


def test_m_values_are_one_finding(table, errors_of):
    values = np.linspace(-6, 5, 40)
    (error,) = errors_of(table(betas(*values)))
    assert error.startswith("betas look like M values")


def test_missing_share_and_shape(table, errors_of, remarks_of):
    values = [0.05, 0.95] * 100 + [""] * 20
    notes = remarks_of(table(betas(*values)), "note")
    assert "9.1% of the betas are missing (20 of 220)" in notes
    assert "betas are bimodal: 50% below .2" in notes
    flat = table(betas(*np.linspace(0.3, 0.7, 200)))
    assert "not bimodal" in remarks_of(flat, "note")
    (error,) = errors_of(table(betas("", "NA", "")))
    assert error.startswith("no beta is measured")


def test_coverage(table, errors_of):
    rows = ["beta,coverage,n_mod", ".5,10,5", ".5,0,0", ",0,0", ".5,-3,1", ".5,4,5", ".5,2.5,1"]
    path = table("\n".join([*rows, ".5,x,1"]))
    assert sorted(error.split(";")[0] for error in errors_of(path)) == [
        "line 3: beta 0.5 with a coverage of 0",
        "line 5: coverage '-3' is not a number of reads",
        "line 6: 5 modified reads of a coverage of 4",
        "line 7: coverage '2.5' is not a number of reads",
        "line 8: coverage 'x' is not a number of reads",
    ]
