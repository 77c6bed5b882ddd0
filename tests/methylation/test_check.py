import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from cedilla.errors import InputError
from cedilla.methylation.check import MethylationDataValidator, check
from cedilla.methylation.simulate import simulate

GOOD = """probe_id,chr,pos,beta
cg00000029,chr16,53468112,0.51
cg00000108,chr3,37459206,
cg00000109,chr3,171916037,0.9
"""


def test_a_good_file_has_no_error(capsys, table, remarks_of):
    path = table(GOOD)
    findings = check(path, build="hg38")
    assert {p.severity for p in findings} == {"warning", "note"}
    assert "33.3% of the betas are missing (1 of 3)" in remarks_of(path, "warning", build="hg38")
    assert "position: pos (1-based, hg38)" in remarks_of(path, "note", build="hg38")
    assert "33.3%" in capsys.readouterr().out


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_are_the_files_own(newline, table, errors_of):
    lines = ["", "probe_id,beta", "", "cg00000001,.5", "", "", "cg00000002,7", "cg00000003,.5"]
    (error,) = errors_of(table(newline.join(lines)))
    assert error.startswith("line 7: beta 7 is outside [0, 1]; percent values? pass --percent")


def test_parquet_counts_rows_from_one(tmp_path, errors_of):
    frame = pd.DataFrame({"probe": ["cg00000001", "cg00000002"], "beta": [0.5, 1.5]})
    frame.to_parquet(tmp_path / "calls.parquet")
    (error,) = errors_of(tmp_path / "calls.parquet")
    assert error.startswith("row 2: beta 1.5")


def test_malformed_missing_and_repeated_probes(table, errors_of):
    text = "IlmnID,beta\ncg00000029,.5\ncg29,.5\n,.5\ncg00000029,.4\ncg00000029_TC21,.4\n"
    malformed, missing, twice = sorted(errors_of(table(text)))
    assert malformed.startswith("line 3: probe id 'cg29' is malformed; expected cg and 8 digits")
    assert missing.startswith("line 4: the probe id is missing")
    assert twice.startswith("line 5: probe cg00000029 stands in line 2 already")


def test_replicates_and_samples_are_no_duplicates(table, errors_of):
    replicates = ["cg00000000,.1", "cg00000000_TC11,.1", "cg00000000_TC12,.1"]
    check(table("\n".join(["probe_id,beta", *replicates])))
    rows = ["probe,sample,beta", "cg00000029,a,.1", "cg00000029,b,.1"]
    check(table("\n".join(rows)))
    (error,) = errors_of(table("\n".join([*rows, "cg00000029,b,.3"])))
    assert error.startswith("line 4: probe cg00000029 stands in line 3 already")


def test_a_label_of_one_class(table, errors_of, remarks_of):
    path = table("beta,label,other\n.5,1,0\n.4,1,1\n.3,,1\n")
    (error,) = errors_of(path)
    assert error.startswith("column 'label' has one class only (1) in 3 records")
    check(path, label="other")
    two = table("beta,label\n.5,1\n.4,0\n.3,\n")
    assert "1 of 3 records have no label in 'label'" in remarks_of(two, "warning")


def test_forbidden_characters_by_record_and_position(table, errors_of):
    path = table("beta,dna\n.5,ACGTNURYacgtn\n.5,AC-GT\n.5,NA\n.5,\n.5,<mask>\n")
    assert errors_of(path, sequence="dna") == [
        "line 5: the sequence is empty; fill it or drop the row",
        "line 3: '-' at position 3 of 'dna' is no nucleotide code; "
        "use A, C, G, T, N or another IUPAC code",
        "line 6: '<' at position 1 of 'dna' is no nucleotide code; "
        "use A, C, G, T, N or another IUPAC code",
    ]


def test_everything_wrong_with_a_file_is_said_at_once(table, errors_of):
    text = (
        "probe_id,chr,pos,beta,coverage,label,sequence\n"
        "cg00000029,chr1,100,0.5,10,1,ACGT\n"
        "cg0000002,1,999999999,1.7,10,1,ACXT\n"
        "cg00000029,chr2,0,abc,10,1,ACGT\n"
    )
    errors = "\n".join(errors_of(table(text)))
    for what in ["1.7", "'abc'", "malformed", "already", "mixed", "beyond", "1-based", "one class"]:
        assert what in errors
    assert "'X' at position 3" in errors


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("blank.csv", b"\n\n"),
        ("header.csv", b"probe_id,beta\n"),
        ("cut.csv.gz", gzip.compress(GOOD.encode() * 500)[:-40]),
        ("latin.csv", "probe_id,beta\ncg00000029,.5é\n".encode("latin-1")),
        ("binary.parquet", bytes(range(256)) * 20),
        ("cut.parquet", b"PAR1" + bytes(100)),
        ("ragged.csv", b"probe_id,beta\ncg00000029,.5,7\n"),
    ],
)
def test_files_that_cannot_be_read_give_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        check(tmp_path / name)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].where.startswith(str(tmp_path / name))


def test_a_missing_file():
    with pytest.raises(InputError, match="does not exist"):
        check(Path("absent.csv"))


def test_what_simulate_writes_is_good(tmp_path):
    out = simulate(out=tmp_path / "sim", n=100)
    for name in ("train", "dev", "test", "calls"):
        check(out / f"{name}.parquet")


def test_the_validator_prints_what_it_found(capsys):
    validator = MethylationDataValidator(build="hg19")
    frame = pd.DataFrame({"probe": ["cg00000029", "cg1"], "beta": [0.5, 1.2], "x": [[1], "[red]"]})
    assert not validator.validate_methylation_data(frame)
    validator.print_summary()
    out = capsys.readouterr().out
    assert "2 errors" in out
    assert "row 1" in out
    assert [p.severity for p in validator.problems] == ["error", "error", "note"]
    assert validator.validate_methylation_data(frame.head(1))
    validator.print_summary()
    assert "error" not in capsys.readouterr().out


def test_the_validator_leaves_the_frame_alone_and_takes_any_columns():
    frame = pd.DataFrame({"beta": ["0.5", " .25 ", ""], 7: [1, 2, 3]}, dtype="object")
    before = frame.copy()
    validator = MethylationDataValidator()
    assert validator.validate_methylation_data(frame)
    pd.testing.assert_frame_equal(frame, before)
    doubled = pd.DataFrame([[0.5, 0.5]], columns=["beta", "beta"])
    assert not validator.validate_methylation_data(doubled)
    assert validator.problems[0].what == "column 'beta' stands twice"
    assert not validator.validate_methylation_data(frame.head(0))
    with pytest.raises(TypeError):
        MethylationDataValidator(bta="x")


@pytest.fixture
def methylation() -> Path:
    if "CEDILLA_DATA" not in os.environ:
        pytest.skip("CEDILLA_DATA does not name the directory of real data")
    return Path(os.environ["CEDILLA_DATA"]) / "methylation"


@pytest.mark.parametrize(
    ("build", "position"),
    [("hg18", "pos_hg18 (1-based"), ("hg19", "start_hg19 (0"), ("hg38", "start_hg38 (0")],
)
def test_real_27k_table(methylation, build, position):
    path = methylation / "hm27_gm12878" / "hm27_seq_beta_gm12878.parquet"
    findings = check(path, build=build, sequence="seq122", label="gm12878_H3K4me3")
    assert {p.severity for p in findings} == {"note"}
    notes = "\n".join(p.what for p in findings)
    assert f"position: {position}" in notes
    assert "5.8% of the betas are missing (3,200 of 55,156)" in notes
    assert "bimodal" in notes


def test_real_matrix(methylation, remarks_of):
    path = methylation / "biolearn_20k_10samples" / "pace_normalized_20kx10.parquet"
    notes = remarks_of(path, "note")
    assert "20,000 records, read as beta: GSM1009660" in notes
    assert "(10 in all), probe: ID_REF" in notes


def test_real_rrbs_calls_are_in_percent(methylation, errors_of):
    path = methylation / "methylkit_hg18_chr21" / "test1.myCpG.txt"
    assert errors_of(path) == ["betas look like percent (up to 100); pass --percent"]
    check(path, percent=True, build="hg18")


@pytest.mark.slow
def test_real_450k_probes_follow_the_grammar(methylation):
    check(methylation / "hm450_hg19" / "hm450_hg19_beta_gm12878.parquet")
