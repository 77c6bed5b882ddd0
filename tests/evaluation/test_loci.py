"""Loci: the rows that every arm shares, and everything that keeps a table from being compared."""

from __future__ import annotations

import os
from pathlib import Path

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
    assert "is outside [0, 1] and looks like percent (60 rows: " in problem
    assert problem.endswith("divide all of it by 100")


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


@pytest.mark.parametrize(("written", "dropped"), [("6", "chr6"), ("X", "chrx"), ("chrX", "X")])
def test_a_group_to_drop_by_its_other_name_is_refused(complaints, read, written, dropped):
    frame = table()
    if not written.startswith("chr"):
        frame["chrom_hg19"] = frame["chrom_hg19"].str.removeprefix("chr")
    frame["chrom_hg19"] = frame["chrom_hg19"].replace({"6": written, "chr6": written})
    prefix = written.removesuffix("X") if written.startswith("chr") else ""
    splits = {"dev": (f"{prefix}2",), "test": (f"{prefix}3", f"{prefix}4")}
    assert complaints(frame, drop=(dropped,), **splits) == [
        f"FILE column chrom_hg19: has no {dropped!r} (--drop); write {written}"
    ]
    assert read(frame, drop=(written, "chrY"), **splits).counts["train"] == 20


def test_another_name_of_a_group_is_told(complaints):
    found = complaints(table(), dev=("2",))
    assert found == ["FILE column chrom_hg19: has no '2' (--dev); write chr2"]


def test_problems_of_rows_numbers_and_groups_come_at_once(complaints):
    frame = table().astype({"beta": object, "dist": object, "label": object})
    frame.loc[0, "sequence"] = "AC-T"
    frame.loc[1, "label"] = np.nan
    frame.loc[2, "beta"] = "high"
    frame.loc[3, "beta"] = 1.5
    frame.loc[4, "dist"] = "inf"
    frame.loc[5, "start_hg19"] = 10**9
    frame["probe_id"] = [f"cg{i:08d}" for i in range(60)]
    frame.loc[6, "probe_id"] = "cg1"
    frame.loc[8, "probe_id"] = "cg00000007"
    found = complaints(frame, annotation=("dist",), dev=("chr22",))
    parts = [
        "line 2: '-' at position 3 is no nucleotide code",
        "line 3: the label is missing",
        "beta is not a number (1 rows: 'high' in line 4)",
        "beta is outside [0, 1] (1 rows: '1.5' in line 5)",
        "dist is infinite (1 rows: 'inf' in line 6)",
        "line 8: probe id 'cg1' is malformed",
        "line 10: probe cg00000007 stands in line 9 already",
        "start_hg19 lies beyond the end of its chromosome in hg19 (1 rows: '1000000000' in line 7)",
        "has no 'chr22' (--dev)",
    ]
    assert len(found) == len(parts)
    for problem, part in zip(found, parts, strict=True):
        assert part in problem


def test_unusable_labels_are_told_once(complaints):
    frame = table().astype({"label": object})
    frame.loc[3, "label"] = 0.5
    (problem,) = complaints(frame)
    assert "line 5: label '0.5' is not usable" in problem


@pytest.mark.parametrize("bare", ["7", "X"])
def test_chromosomes_with_and_without_chr_are_refused(complaints, bare):
    frame = table()
    frame.loc[frame.chrom_hg19 == "chr6", "chrom_hg19"] = bare
    assert complaints(frame) == [
        f"FILE column chrom_hg19: names are mixed, as in chr1 (5 with chr) and {bare} (1 without);"
        " name chromosomes one way"
    ]


def test_groups_that_are_no_chromosomes_have_any_name(read):
    frame = table().replace({"chrom_hg19": {"chr6": "control", "chr5": "chrUn_1"}})
    assert read(frame).counts["train"] == 30


@pytest.mark.parametrize(
    ("suffix", "end", "name"),
    [("_hg19", 249_250_621, "hg19"), ("_hg18", 247_249_719, "hg18")],
)
def test_positions_beyond_the_chromosome_are_refused(complaints, read, suffix, end, name):
    names = {"chrom_hg19": f"chrom{suffix}", "start_hg19": f"start{suffix}"}
    columns = COLUMNS | {"group": f"chrom{suffix}"}
    frame = table().rename(columns=names)
    frame.loc[0, f"start{suffix}"] = end - 1
    assert read(frame, columns=columns).block_kind == "blocks of 2 Mb"
    frame.loc[0, f"start{suffix}"] = end
    (problem,) = complaints(frame, columns=columns)
    assert f"lies beyond the end of its chromosome in {name}" in problem
    assert f"(1 rows: '{end}' in line 2)" in problem


def test_positions_of_an_unnamed_build_may_be_those_of_any_genome(read):
    frame = table().rename(columns={"chrom_hg19": "chrom", "start_hg19": "start"})
    frame.loc[0, "start"] = 10**9
    assert read(frame, columns=COLUMNS | {"group": "chrom"}).block_kind == "blocks of 2 Mb"


def test_a_table_may_be_grouped_by_probe(read):
    frame = table()
    frame["IlmnID"] = frame["chrom_hg19"].str.replace("chr", "cg0000000")
    loci = read(
        frame,
        columns=COLUMNS | {"group": "IlmnID"},
        dev=("cg00000002",),
        test=("cg00000003",),
    )
    assert loci.counts == {"train": 40, "dev": 10, "test": 10}


@pytest.mark.skipif("CEDILLA_DATA" not in os.environ, reason="CEDILLA_DATA is not set")
def test_the_real_27k_table_passes():
    folder = Path(os.environ["CEDILLA_DATA"]) / "methylation/hm27_gm12878"
    loci = read_loci(
        folder / "hm27_seq_beta_gm12878.parquet",
        columns={
            "sequence": "seq122",
            "label": "gm12878_H3K4me3",
            "beta": "beta_median_sesame450k",
            "group": "chrom_hg19",
        },
        annotation=("cgi_ucsc_hg19", "dist_tss"),
        dev=("chr7", "chr10"),
        test=("chr8", "chr9"),
        drop=("chrX", "chrY"),
        position="start_hg19",
        block_size=2_000_000,
        rows=None,
    )
    assert loci.read == 27_578
    assert len(loci.labels) + sum(loci.left_out.values()) == loci.read
