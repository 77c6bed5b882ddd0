"""Rows of tables: streamed, with the line or row that each comes from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cedilla.dna import table_rows
from cedilla.dna.records import Findings
from cedilla.dna.table_rows import read_delimited, read_parquet
from cedilla.errors import InputError


def delimited(
    path: Path, text: str | bytes, sequence: str = "sequence", id: str | None = None
) -> tuple[list[tuple[str, str, str]], list[str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    findings = Findings()
    rows = list(read_delimited(path, findings, sequence=sequence, id=id))
    found = [(r.where.removeprefix(f"{path} "), r.id, r.sequence) for r in rows]
    return found, [str(p).removeprefix(f"{path} ") for p in findings.problems("x")]


@pytest.mark.parametrize("by", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_of_any_dialect(tmp_path: Path, by: str, end: str) -> None:
    lines = ["", f'label{by}"my, sequence"{by}gene', f'1{by} ACGT {by}"a{end}b"', f"0{by}NA{by}7"]
    rows, problems = delimited(tmp_path / "x", end.join(lines), "my, sequence", "gene")
    assert rows == [("line 3", "a\nb", "ACGT"), ("line 5", "7", "NA")]
    assert not problems


def test_ids_are_the_column_id_or_line_numbers(tmp_path: Path) -> None:
    assert delimited(tmp_path / "x", "sequence,id\nAC,s1\n\nGT,s2")[0] == [
        ("line 2", "s1", "AC"),
        ("line 4", "s2", "GT"),
    ]
    assert delimited(tmp_path / "x", "sequence,name\nAC,s1\n\nGT,s2\n")[0] == [
        ("line 2", "2", "AC"),
        ("line 4", "4", "GT"),
    ]


def test_long_fields_pass_and_ragged_rows_do_not(tmp_path: Path) -> None:
    rows, problems = delimited(tmp_path / "x", f"id,sequence\na,{'A' * 200_000}\nb\nc,G,1\nd,T\n")
    assert [(id, len(bases)) for _, id, bases in rows] == [("a", 200_000), ("d", 1)]
    assert problems == [
        "line 3: has 1 fields where the header has 2; every row needs one field per column",
        "line 4: has 3 fields where the header has 2; every row needs one field per column",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,seqence\na,AC\n", "has no column 'sequence'; did you mean 'seqence'? its columns: id"),
        ("ACGT" * 999 + "\nACGT\n", "its columns: " + ("ACGT" * 8)[:30]),
        ("sequence,sequence\nA,C\n", "column 'sequence' stands twice"),
        ('sequence,x\nA,1\nC,2\n"G,3\n', "line 4: cannot be parsed"),
        (b"sequence,x\nA,1\nC,\xff\n", "line 3: is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        delimited(tmp_path / "x", text)
    assert said in str(caught.value)


def parquet(path: Path, id: str | None = None) -> list[tuple[str, str, str]]:
    rows = read_parquet(path, Findings(), sequence="sequence", id=id)
    return [(r.where.removeprefix(f"{path} "), r.id, r.sequence) for r in rows]


def test_parquet_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "ROWS_AT_ONCE", 2)
    path = tmp_path / "x"
    frame = pd.DataFrame({"n": [7, 8, 9], "sequence": ["AC", None, " GT"], "id": ["a", "b", None]})
    frame.to_parquet(path)
    assert parquet(path) == [("row 1", "a", "AC"), ("row 2", "b", ""), ("row 3", "", "GT")]
    assert parquet(path, "n") == [("row 1", "7", "AC"), ("row 2", "8", ""), ("row 3", "9", "GT")]
    frame.drop(columns="id").astype({"sequence": "category"}).to_parquet(path)
    assert parquet(path) == [("row 1", "1", "AC"), ("row 2", "2", ""), ("row 3", "3", "GT")]


def test_parquet_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    pq.write_table(pa.table({"sequence": [1, 2]}), path)
    with pytest.raises(InputError, match="column 'sequence' holds int64, not text"):
        parquet(path)
    pq.write_table(pa.table({"sequence": ["ACGT" * 99] * 999}), path, use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match="row 1: is damaged Parquet"):
        parquet(path)
    path.write_bytes(content[:4] + bytes(40) + content[44:])
    with pytest.raises(InputError, match="is damaged Parquet"):
        parquet(path)
