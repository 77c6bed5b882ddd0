"""Tables of sequences: every format reads alike, and everything wrong is told at once."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedilla.dna.tables import read_sequences, read_table
from cedilla.errors import InputError

ROWS = "sequence,label\nACGT,1\nTTGA,0\n"
CRLF_WITH_BOM = b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode()


@pytest.fixture
def write(tmp_path: Path):
    def _write(content: str | bytes, name: str = "reads.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


def complaints(path: Path, **columns) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_sequences(path, **columns)
    return [str(problem).replace(str(path), "FILE") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (ROWS, "a.csv"),
        (ROWS.rstrip("\n"), "no_final_newline.csv"),
        (CRLF_WITH_BOM, "from_excel.csv"),
        (ROWS.replace("\n", "\r"), "old_mac.csv"),
        (ROWS.replace(",", "\t"), "a.tsv"),
        (ROWS.replace(",", "\t"), "tabs_named.csv"),
        (ROWS.replace(",", ";"), "semicolons.csv"),
        (gzip.compress(ROWS.encode()), "a.csv.gz"),
        (gzip.compress(ROWS.encode()), "gzip_named.csv"),
        ('"label","sequence"\n"1","ACGT"\n"0","TTGA"\n', "quoted.csv"),
        ("sequence, label\nACGT, 1\nTTGA, 0\n", "spaced.csv"),
        ("sequence,label\nacgu,True\n ttga ,False\n", "lower_case_rna.csv"),
        (">2 label=1\nAC\nGT\n>3 label=0\nTTGA\n", "a.fa"),
        (gzip.compress(b">2 label=1\r\nACGT\r\n>3 label=0\r\nTTGA"), "a.fa.gz"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_every_format_reads_alike(write, content, name):
    table = read_sequences(write(content, name))
    assert table.sequences == ["ACGT", "TTGA"]
    assert table.labels.tolist() == [1, 0]
    assert table.labels.dtype == np.int64
    assert table.ids == ["2", "3"]
    assert table.classes == 2
    assert table.notes == []
    assert len(table) == 2


def test_parquet_counts_rows_from_one_and_keeps_a_named_index(tmp_path):
    frame = pd.DataFrame({"sequence": ["ACGT", "TTGA"], "label": [1, 0]})
    frame.index = pd.Index(["x", "y"], name="probe")
    frame.to_parquet(tmp_path / "named_wrongly.csv")
    read = read_table(tmp_path / "named_wrongly.csv")
    assert read.attrs["record"] == "row"
    assert read.index.tolist() == [1, 2]
    table = read_sequences(tmp_path / "named_wrongly.csv", id="probe", extra=("label",))
    assert table.ids == ["x", "y"]
    assert table.frame["label"].tolist() == [1, 0]


def test_the_index_is_the_line_even_after_blank_lines_and_quoted_newlines(write):
    path = write('note,sequence\n\n"two\nlines",ACGT\n\nplain,TTGA\n')
    assert read_table(path).index.tolist() == [3, 6]
    assert read_table(path).attrs["record"] == "line"


def test_columns_get_the_type_of_all_their_values(write):
    path = write("i,f,b,t,m,e\n1,.5,TRUE,chr1,1,\n2,NA,false,NA,x,\n")
    frame = read_table(path)
    assert frame["i"].dtype == np.int64
    assert frame["f"].tolist()[0] == 0.5
    assert frame["b"].tolist() == [True, False]
    assert frame[["f", "t", "e"]].isna().sum().tolist() == [1, 1, 2]
    assert frame["m"].tolist() == ["1", "x"]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_floats_survive_text_exactly(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("floats") / "a.csv"
    path.write_text("x,y\n" + "".join(f"{value!r},1\n" for value in values))
    assert read_table(path)["x"].tolist() == values


def test_text_stays_as_written_where_it_is_sequence_or_id(write):
    table = read_sequences(write("sequence,id\nNA,007\nNAN,NA\n"), label=None, id="id")
    assert table.sequences == ["NA", "NAN"]
    assert table.ids == ["007", "NA"]
    assert table.labels is None
    assert table.classes == 0


def test_iupac_codes_become_n_and_are_counted_once(write):
    table = read_sequences(write("sequence,label\nACGT,1\nRYAN,0\nNNNS,1\n"))
    assert table.sequences == ["ACGT", "NNAN", "NNNN"]
    (note,) = table.notes
    assert note.severity == "warning"
    assert "3 IUPAC codes such as R or Y in 2 sequences (the first in line 3)" in note.what


def test_a_sequence_may_be_long(write):
    table = read_sequences(write(f"sequence,label\n{'ACGT' * 100_000},1\nA,0\n"))
    assert len(table.sequences[0]) == 400_000


def test_names_are_classes_in_sorted_order_and_follow_the_training_table(write):
    train = read_sequences(write("sequence,label\nA,pos\nC,neg\nG,mid\n"))
    assert train.label_names == ["mid", "neg", "pos"]
    assert train.labels.tolist() == [2, 1, 0]
    test = read_sequences(write("sequence,label\nA,pos\nC,neg\n"), classes=train.classes)
    assert test.labels.tolist() == [2, 1]
    assert complaints(write("sequence,label\nA,pos\nC,0\n"), classes=train.classes) == [
        "FILE line 3: label '0' is not usable; the classes are mid, neg, pos"
    ]
    assert complaints(write("sequence,label\nA,0\nC,2\n"), classes=2) == [
        "FILE line 3: label '2' is not usable; use integers from 0 to 1"
    ]


def test_everything_wrong_with_the_rows_is_told_at_once(write):
    path = write(
        "id,sequence,label\na,ACXT,1\nb,,0\nb,ACGT,\nd,ACGT,0.5\ne,ACGT,-1\n,ACGT,yes\n,5ACGT,1\n"
    )
    assert complaints(path, id="id") == [
        "FILE line 3: the sequence is empty; fill it or drop the row",
        "FILE line 2: 'X' at position 3 is no nucleotide code;"
        " use A, C, G, T, N or another IUPAC code",
        "FILE line 8: '5' at position 1 is no nucleotide code;"
        " use A, C, G, T, N or another IUPAC code",
        "FILE line 7: the id is empty; name the record",
        "FILE line 8: the id is empty; name the record",
        "FILE line 4: the id 'b' stands further up already; make the ids unique",
        "FILE line 4: the label is missing; fill it or drop the row",
        "FILE line 5: label '0.5' is not usable; use integers from 0",
        "FILE line 6: label '-1' is not usable; use integers from 0",
        "FILE line 7: label 'yes' is not usable; use integers from 0",
    ]


def test_problems_of_rows_may_be_collected(write):
    problems = []
    path = write("sequence,label,more\nAC-T,1,x\nACGT,no,y\nACGT,0,z\n")
    table = read_sequences(path, collect=problems)
    assert [problem.where for problem in problems] == [f"{path} line 2", f"{path} line 3"]
    assert table.labels.tolist() == [1, -1, 0]
    assert list(table.frame) == ["sequence", "label", "more"]
    with pytest.raises(InputError, match="has no column 'most'"):
        read_sequences(path, extra=("most",), collect=problems)


def test_ten_thousand_bad_rows_are_six_lines(write):
    found = complaints(write("sequence,label\n" + "AC*T,1\nACGT,0\n" * 10_000))
    assert len(found) == 6
    assert found[0].startswith("FILE line 2: '*' at position 3")
    assert found[-1] == "FILE: the same holds for 9,995 more (10,000 in all)"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "FILE: is empty; a header and at least one row are needed"),
        (b"\xef\xbb\xbf\r\n", "FILE: is empty; a header and at least one row are needed"),
        (gzip.compress(b""), "FILE: is empty; a header and at least one row are needed"),
        (b"sequence,label\n", "FILE line 1: is a header without rows; at least one row is needed"),
        (
            b"sequence,label\nA,1\nC\n",
            "FILE line 3: has 1 fields where the header has 2;"
            " every row needs one field per column",
        ),
        (
            b"sequence,label\n1,A,1\n2,C,0\n",
            "FILE line 2: has 3 fields where the header has 2;"
            " row names written by R? write with row.names = FALSE",
        ),
        (
            b"sequence,label\nA,1\nC,\xff\n",
            "FILE line 3: is not UTF-8 text; save the file as UTF-8",
        ),
        (
            'sequence,label\nA,1\n"C,0\n',
            "FILE line 3: cannot be parsed (unexpected end of data); check its quotation marks",
        ),
        (
            "sequence,label,label\nA,1,1\n",
            "FILE line 1: column 'label' stands twice; rename one",
        ),
        (
            "Sequence,lable\nA,1\n",
            "FILE: has no column 'sequence'; did you mean 'Sequence'? its columns: Sequence, lable",
        ),
        (
            "sequence,label\nA,1\nC,1\n",
            "FILE: column 'label' has one class only (1);"
            " at least two classes are needed to learn or to measure anything",
        ),
        (
            b"PK\x03\x04 and so on",
            "FILE: is an Excel workbook or a zip archive;"
            " save it as CSV or TSV in UTF-8, or Parquet",
        ),
        (
            b">a label=1\nACGT\n>\nA\xff\n",
            "FILE record 2: cannot be parsed as FASTA; check that record",
        ),
    ],
)
def test_a_damaged_file_is_told_by_its_place(write, content, problem):
    assert problem in complaints(write(content))


def test_truncated_files_name_the_place(write):
    whole = gzip.compress(
        b"sequence,label\n" + os.urandom(30_000).hex().replace("0", "\n").encode()
    )
    (found,) = complaints(write(whole[: len(whole) // 2]))
    line = int(found.split()[2].rstrip(":"))
    assert 500 < line < 3000
    assert found.endswith("the gzip data are cut off or damaged; copy the file anew")
    (found,) = complaints(write(b"PAR1 and no footer"))
    assert found.startswith("FILE: is damaged Parquet (")


def test_a_missing_file_and_a_directory(write, tmp_path):
    write(ROWS, "reads.csv")
    with pytest.raises(
        InputError, match=r"raeds\.csv: does not exist; did you mean .*/reads\.csv\?"
    ):
        read_table(tmp_path / "raeds.csv")
    with pytest.raises(InputError, match="is a directory; name a CSV"):
        read_table(tmp_path)


def test_fasta_problems_name_the_record(write):
    assert complaints(write(">a label=1\nACGT\n>a label=0\nAC!T\n>c\n\n", "a.fa")) == [
        "FILE record 3: the sequence is empty; fill it or drop the row",
        "FILE record 2: '!' at position 3 is no nucleotide code;"
        " use A, C, G, T, N or another IUPAC code",
        "FILE record 2: the id 'a' stands further up already; make the ids unique",
        "FILE record 3: the label is missing; fill it or drop the row",
    ]


@pytest.mark.skipif("CEDILLA_DATA" not in os.environ, reason="CEDILLA_DATA is not set")
def test_real_tables_read_whole():
    data = Path(os.environ["CEDILLA_DATA"])
    train = read_sequences(data / "gue/prom/prom_core_all/train.csv.gz")
    assert (len(train), train.classes, train.notes) == (47_356, 2, [])
    loci = read_sequences(
        data / "methylation/hm27_gm12878/hm27_seq_beta_gm12878.parquet",
        sequence="seq122",
        label="gm12878_H3K4me3",
        extra=("chrom_hg19",),
    )
    assert len(loci) == 27_578
    assert {len(s) for s in loci.sequences} == {122}
