import numpy as np
import pandas as pd

from cedilla.methylation.check import MethylationDataValidator, check


def matrix() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.beta(0.4, 0.4, (50, 3)), columns=["GSM1", "GSM2", "GSM3"])
    return values.set_axis([f"cg{k:08d}" for k in range(50)], axis=0)


def test_a_matrix_of_probes_by_samples(tmp_path, errors_of):
    frame = matrix()
    frame.iloc[7, 1] = 1.5
    frame.to_csv(tmp_path / "matrix.tsv.gz", sep="\t", index_label="ID_REF")
    (error,) = errors_of(tmp_path / "matrix.tsv.gz")
    assert error.startswith("line 9: beta 1.5 in column 'GSM2' is outside [0, 1]")


def test_a_matrix_with_its_probes_in_the_index_or_across():
    frame = matrix()
    validator = MethylationDataValidator()
    assert validator.validate_methylation_data(frame)
    assert "probe: the index" in validator.problems[-1].what
    assert validator.validate_methylation_data(frame.T)
    frame.iloc[0, 0] = 2
    assert not validator.validate_methylation_data(frame)
    assert str(validator.problems[0]).startswith("table row cg00000000: beta 2 in column 'GSM1'")
    assert not validator.validate_methylation_data(frame.T)


def test_one_sample_in_percent_among_fractions():
    frame = matrix().assign(GSM2=lambda f: f["GSM2"] * 100)
    validator = MethylationDataValidator(beta="GSM1,GSM2,GSM3")
    assert not validator.validate_methylation_data(frame)
    (error,) = [p for p in validator.problems if p.severity == "error"]
    assert error.what.startswith("1 of 3 beta columns (GSM2) look like percent")
    assert error.mend == "divide these columns by 100"
    guessing = MethylationDataValidator()
    guessing.validate_methylation_data(frame)
    assert "passed over: GSM2" in guessing.problems[0].what


def test_a_sparse_sample_is_named():
    frame = matrix()
    frame.iloc[:20, 2] = np.nan
    validator = MethylationDataValidator()
    assert validator.validate_methylation_data(frame)
    warnings = [p.what for p in validator.problems if p.severity == "warning"]
    assert warnings == ["1 of 3 columns miss more than 20% of their betas: GSM3"]


def test_no_beta_column_names_the_columns_and_the_nearest(table, errors_of):
    (error,) = errors_of(table("probe_id,betta\ncg00000029,.5\n"))
    assert error == (
        "has no beta column; its columns: probe_id, betta; did you mean 'betta'? pass --beta betta"
    )
    check(table("probe_id,betta\ncg00000029,.5\n"), beta="betta")
    (error,) = errors_of(table("probe_id,xyz\ncg00000029,.5\n"))
    assert error.endswith("name it with --beta")


def test_a_named_column_that_is_not_there(table, errors_of):
    errors = errors_of(
        table("probe_id,chr,pos,beta\ncg00000029,chr16,53468112,0.51\n"), chrom="chrm", beta="bta"
    )
    assert [error.split(";")[0] for error in errors] == [
        "has no column 'bta'",
        "has no column 'chrm'",
    ]
    assert "did you mean 'beta'?" in errors[0]


def test_a_missing_column_is_reported_beside_a_present_one(table, errors_of):
    path = table("probe_id,beta,two\ncg00000029,0.51,.2\n")
    (error,) = errors_of(path, beta="beta", probe="prob_id")
    assert error.startswith("has no column 'prob_id'; did you mean 'probe_id'?")
    (error,) = errors_of(path, beta="beta,too")
    assert error.startswith("has no column 'too'; did you mean 'two'?")
