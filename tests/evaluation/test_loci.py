"""Loci: the rows that every arm shares, and everything that keeps a table from being compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cedilla.errors import InputError
from cedilla.evaluation.loci import read_loci

COLUMNS = {"sequence": "sequence", "label": "label", "beta": "beta", "group": "chrom_hg19"}


def table(n: int = 60) -> pd.DataFrame:
    """Six chromosomes in turn, each with both classes."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "sequence": ["ACGT" * 3] * n,
            "label": np.arange(n) // 6 % 2,
            "beta": rng.random(n).round(3),
            "island": rng.integers(0, 2, n) == 1,
            "dist": rng.normal(0, 1000, n).round(1),
            "chrom_hg19": [f"chr{1 + i % 6}" for i in range(n)],
            "start_hg19": np.arange(n) * 100_000,
        }
    )


@pytest.fixture
def read(tmp_path):
    def _read(frame: pd.DataFrame, *, columns=COLUMNS, **settings):
        path = tmp_path / "loci.csv"
        frame.to_csv(path, index=False)
        given = {
            "annotation": (),
            "dev": ("chr2",),
            "test": ("chr3", "chr4"),
            "drop": (),
            "position": None,
            "block_size": 2_000_000,
            "rows": None,
        }
        return read_loci(path, columns=columns, **given | settings)

    return _read


@pytest.fixture
def complaints(read, tmp_path):
    def _complaints(frame: pd.DataFrame, **settings) -> list[str]:
        with pytest.raises(InputError) as caught:
            read(frame, **settings)
        return [
            str(problem).replace(str(tmp_path / "loci.csv"), "FILE")
            for problem in caught.value.problems
        ]

    return _complaints


def test_groups_make_the_splits(read):
    loci = read(table(), annotation=("island", "dist"), drop=("chr6", "chrY"))
    assert loci.counts == {"train": 20, "dev": 10, "test": 20}
    by_group = dict(zip(loci.groups, loci.splits, strict=True))
    assert by_group == {
        "chr1": "train",
        "chr2": "dev",
        "chr3": "test",
        "chr4": "test",
        "chr5": "train",
    }
    assert loci.annotation.shape == (50, 2)
    assert set(loci.annotation[:, 0]) == {0.0, 1.0}  # true and false are numbers
    assert loci.read == 60
    assert loci.left_out == {"chrom_hg19 is one of chr6, chrY": 10}
    assert loci.ids[:2] == ["2", "3"]
    assert loci.record.endswith("loci.csv line")


def test_rows_keep_what_belongs_to_them(read):
    frame = table()
    frame.loc[::4, "beta"] = np.nan
    loci = read(frame, annotation=("dist",), drop=("chr1",))
    rows = [int(i) - 2 for i in loci.ids]
    assert loci.labels.tolist() == frame["label"][rows].tolist()
    np.testing.assert_array_equal(loci.beta, frame["beta"][rows])
    np.testing.assert_array_equal(loci.annotation[:, 0], frame["dist"][rows])
    assert loci.groups.tolist() == frame["chrom_hg19"][rows].tolist()


def test_rows_left_out_are_counted_by_reason(read):
    frame = table()
    frame.loc[[0, 1, 2], "beta"] = np.nan  # of chr1, chr2 and chr3
    frame.loc[[4, 10], "chrom_hg19"] = np.nan
    frame.loc[[16], "start_hg19"] = np.nan
    loci = read(frame, drop=("chr1",), rows=9)
    assert loci.left_out == {
        "chrom_hg19 is one of chr1": 10,
        "no chrom_hg19": 2,
        "no start_hg19": 1,
        "no beta": 2,
        "beyond --rows": 8,
    }
    assert len(loci.labels) + sum(loci.left_out.values()) == loci.read
    assert loci.counts == {"train": 9, "dev": 9, "test": 19}


def test_training_rows_are_drawn_once_for_all(read):
    draws = [read(table(), rows=12).ids for _ in range(2)]
    assert draws[0] == draws[1]
    assert read(table(), rows=1000).left_out == {}


def test_a_position_beside_the_group_gives_blocks(read):
    loci = read(table())
    assert loci.block_kind == "blocks of 2 Mb"
    assert loci.blocks[:2].tolist() == ["chr1:0", "chr2:0"]
    assert set(loci.blocks) == {f"chr{c}:{b}000000" for c in range(1, 7) for b in (2, 4)} | {
        f"chr{c}:0" for c in range(1, 7)
    }
    assert len(set(read(table(), block_size=1_000_000).blocks)) == 36


@pytest.mark.parametrize(
    ("group", "position"),
    [
        ("chrom", "start0"),
        ("chrom", "start"),
        ("chr", "pos0"),
        ("chromosome", "start"),
        ("chrom_hg38", "start_hg38"),
    ],
)
def test_positions_are_recognised_by_name(read, group, position):
    frame = table().rename(columns={"chrom_hg19": group, "start_hg19": position})
    assert read(frame, columns=COLUMNS | {"group": group}).block_kind == "blocks of 2 Mb"


def test_a_position_of_another_name_is_named_by_the_user(read):
    frame = table().rename(columns={"start_hg19": "where"})
    loci = read(frame)
    assert loci.block_kind == "single rows"
    assert len(set(loci.blocks)) == 60
    assert read(frame, position="where").block_kind == "blocks of 2 Mb"


def test_chromosomes_may_be_numbers_with_gaps(read):
    frame = table()
    frame["chrom_hg19"] = frame["chrom_hg19"].str.removeprefix("chr").astype(float)
    frame.loc[0, "chrom_hg19"] = np.nan
    loci = read(frame, dev=("2",), test=("3", "4"))
    assert loci.counts == {"train": 29, "dev": 10, "test": 20}
    assert set(loci.groups) == set("123456")


def test_all_problems_come_at_once(complaints):
    frame = table().astype({"beta": object, "dist": object})
    frame.loc[3, "beta"] = "high"
    frame.loc[[4, 5, 6, 7], "dist"] = "far"
    frame["label"] = frame.index % 3
    found = complaints(frame, annotation=("dist",), dev=("chr22",), test=("chr3",), drop=("chr3",))
    assert found == [
        "FILE: beta is not a number (1 rows: 'high' in line 5); leave an unknown value empty",
        "FILE: dist is not a number (4 rows: 'far' in line 6, 'far' in line 7, 'far' in line 8, …);"
        " leave an unknown value empty",
        "FILE column chrom_hg19: has no 'chr22' (--dev); it has chr2",
        "FILE column chrom_hg19: chr3 in two lists; name each once",
        "FILE column label: has the classes 0, 1, 2; a comparison takes a label of 0 and 1",
    ]


def test_betas_beyond_their_range_are_refused(complaints):
    frame = table()
    frame.loc[[2, 3], "beta"] = 1.25, -0.5
    assert complaints(frame) == [
        "FILE: beta is outside [0, 1] (2 rows: '1.25' in line 4, '-0.5' in line 5); correct it"
    ]
    (problem,) = complaints(table().assign(beta=lambda t: 1.5 + 98 * t["beta"]))
    assert "is outside [0, 1] (60 rows: " in problem
    assert problem.endswith("percent values? divide them by 100")


def test_unknown_columns_get_the_nearest_name(complaints):
    found = complaints(table(), columns=COLUMNS | {"beta": "betas"}, annotation=("islands",))
    assert "FILE: has no column 'betas'; did you mean 'beta'?" in found[0]
    assert "FILE: has no column 'islands'; did you mean 'island'?" in found[1]
    assert "did you mean 'start_hg19'" in complaints(table(), position="starts_hg19")[0]
    assert "'chrom_hg19'" in complaints(table(), columns=COLUMNS | {"group": "chrom_hg1"})[0]


def test_a_column_that_serves_twice_is_refused(complaints):
    (problem,) = complaints(table(), annotation=("island", "beta"))
    assert problem == "FILE column beta: is named for two things; name it once"
    (problem,) = complaints(table(), annotation=("label",))
    assert problem.startswith("FILE column label: is named for two things")


def test_one_chromosome_by_two_names_is_refused(complaints):
    frame = table()
    frame.loc[3, "chrom_hg19"] = "4"
    (problem,) = complaints(frame)
    assert "has 4 and chr4: one chromosome, two names" in problem


def test_labels_of_one_class_are_refused(complaints):
    (problem,) = complaints(table().assign(label=1))
    assert "one class only" in problem


def test_every_split_needs_both_classes(complaints):
    frame = table()
    frame.loc[frame.chrom_hg19 == "chr2", "label"] = 0
    assert complaints(frame) == [
        "FILE: dev has 10 rows of the classes [0]; "
        "choose other groups: every split needs both classes"
    ]
    everything = ("chr1", "chr3", "chr4", "chr5", "chr6")
    assert "train has 0 rows" in complaints(table(), test=everything)[0]
    assert len(complaints(table().assign(beta=np.nan))) == 3


def test_test_rows_in_one_block_cannot_be_resampled(complaints):
    assert complaints(table(), test=("chr3",), block_size=10**9) == [
        "FILE: all test rows lie in one block, and nothing can be resampled; lower --block-size"
    ]


def test_positions_that_are_none_are_refused(complaints):
    frame = table()
    frame.loc[5, "start_hg19"] = -1
    assert "start_hg19 is outside [0, inf]" in complaints(frame)[0]
    assert "start_hg19 is not a number" in complaints(table().astype(str).assign(start_hg19="x"))[0]
