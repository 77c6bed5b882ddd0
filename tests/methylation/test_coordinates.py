import pytest

from cedilla.errors import InputError
from cedilla.methylation.check import check
from cedilla.methylation.coordinates import CHROMOSOME_LENGTHS


def test_lengths_of_the_builds():
    assert CHROMOSOME_LENGTHS["hg18"]["1"] == 247_249_719
    assert CHROMOSOME_LENGTHS["hg19"]["22"] == 51_304_566
    assert CHROMOSOME_LENGTHS["hg38"]["X"] == 156_040_895
    assert [len(lengths) for lengths in CHROMOSOME_LENGTHS.values()] == [25] * 3
    totals = {build: sum(lengths.values()) for build, lengths in CHROMOSOME_LENGTHS.items()}
    assert totals == {"hg18": 3_080_436_051, "hg19": 3_095_693_983, "hg38": 3_088_286_401}


def calls(*rows: str, header: str = "chrom,pos0,beta") -> str:
    return "\n".join([header, *(f"{row},.5" for row in rows)]) + "\n"


def test_the_last_base_of_a_chromosome(table, errors_of):
    end = CHROMOSOME_LENGTHS["hg19"]["21"]
    zero = table(calls("chr21,0", f"chr21,{end - 1}", f"chr21,{end}"))
    (error,) = errors_of(zero, build="hg19")
    what = "position 48129895 lies beyond the end of chromosome chr21 (48129895 bp in hg19)"
    assert error.startswith(f"line 4: {what}")
    one = calls("chr21,0", f"chr21,{end}", f"chr21,{end + 1}", header="chrom,MAPINFO,beta")
    low, high = errors_of(table(one), build="hg19")
    assert low.startswith("line 2: position 0 in 'MAPINFO', which is 1-based")
    assert "--base0" in low
    assert high.startswith("line 4: position 48129896 lies beyond")
    (high,) = errors_of(table(one.replace(f"{end}", f"{end - 1}")), base0=True)
    assert high.startswith("line 4")


def test_without_a_build_the_longest_counts(table, errors_of):
    path = table(calls("chr1,249250620", "chr1,249250621"))
    (error,) = errors_of(path)
    assert error.startswith("line 3: position 249250621 lies beyond")
    assert len(errors_of(path, build="hg38")) == 2


def test_a_build_in_the_columns_name_is_used(table, errors_of, remarks_of):
    text = "chrom_hg19,start_hg19,chrom_hg38,pos_hg38,beta\nchr22,51304565,chr22,50818469,.5\n"
    path = table(text)
    assert "position: start_hg19 (0-based, hg19)" in remarks_of(path, "note", build="hg19")
    (error,) = errors_of(path, build="hg38")
    assert error.startswith("line 2: position 50818469 lies beyond the end of chromosome chr22")


def test_a_base_in_the_columns_name_is_used(table, remarks_of):
    for name, base in (("pos_hg19_0based", 0), ("start_hg19_1based", 1), ("pos", 1), ("start", 0)):
        path = table(f"chrom,{name},beta\nchr22,5,.5\n")
        assert f"position: {name} ({base}-based" in remarks_of(path, "note")


def test_another_genome(tmp_path, table, errors_of):
    sizes = table("chrI\t230218\nchrII\t813184\n", "yeast.sizes")
    path = table(calls("chrI,230217", "chrI,230218"))
    (error,) = errors_of(path, genome_sizes=sizes)
    assert error.startswith("line 3: position 230218 lies beyond the end of chromosome chrI")
    with pytest.raises(InputError, match=r"bad\.sizes line 2: is not a name and a length"):
        check(path, genome_sizes=table("chrI\t5\nchrII\n", "bad.sizes"))
    with pytest.raises(InputError, match="cannot be read as text"):
        check(path, genome_sizes=tmp_path / "absent.sizes")


def test_mixed_names_unknown_chromosomes_and_gaps(table, errors_of, remarks_of):
    path = table(calls("chr1,5", "chr2,6", "3,7"))
    (error,) = errors_of(path)
    assert error == (
        "line 4: chromosome '3': names are mixed (2 with 'chr', 1 without chr); "
        "name all chromosomes one way"
    )
    (error,) = errors_of(table(calls("chr1,5", "chr2,6", "Chr3,7")))
    assert "(2 with 'chr', 1 with 'Chr')" in error
    path = table(calls("chr1,5", "chrUn_gl000220,6", "chr1,", ",4"))
    warnings = remarks_of(path, "warning")
    assert "1 of 4 records are on chromosomes unknown to hg18, hg19 or hg38" in warnings
    assert "chrUn_gl000220 (1)" in warnings
    assert "1 of 4 records have no chromosome" in warnings
    assert "1 of 4 records have no position" in warnings


def test_chromosomes_as_numbers_with_a_gap(table, errors_of):
    path = table(calls("1,5", "22,51304566", ",7"))
    (error,) = errors_of(path, build="hg19")
    assert "beyond the end of chromosome 22" in error


def test_positions_that_are_none(table, errors_of):
    path = table(calls("chr1,-5", "chr1,1.5", "chr1,abc", "chr1,inf"))
    assert sorted(error.split(";")[0] for error in errors_of(path)) == [
        "line 2: position -5 in 'pos0', which is 0-based",
        "line 3: position '1.5' is not a whole number",
        "line 4: position 'abc' is not a whole number",
        "line 5: position 'inf' is not a whole number",
    ]


def test_unsorted_records_are_noted(table, remarks_of):
    for rows in (["chr1,7", "chr1,5"], ["chr1,1", "chr2,1", "chr1,2"]):
        assert "not sorted" in remarks_of(table(calls(*rows)), "note")
    rows = ["chr2,1", "chr2,9", "chr10,1", "chr1,4"]
    assert "not sorted" not in remarks_of(table(calls(*rows)), "note")
