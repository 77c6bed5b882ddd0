"""Haplotypes of a phased VCF file, beside bcftools itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest

from cedilla.dna.genome_store import GenomeStore, open_store
from cedilla.dna.haplotypes import Haplotypes
from cedilla.errors import InputError

SAMPLES = ("anna", "bert", "cleo")
HEADER = (
    "##fileformat=VCFv4.3\n{contigs}"
    '##INFO=<ID=END,Number=1,Type=Integer,Description="last base">\n'
    '##ALT=<ID=DEL,Description="deletion">\n##ALT=<ID=INS,Description="insertion">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">\n'
)
LETTERS = "ACGTN\0\0\0acgtn"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CEDILLA_CACHE", str(tmp_path / "cache"))


def genome(folder: Path, **contigs: str) -> GenomeStore:
    path = folder / "genome.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    return open_store(path)


def calls(
    folder: Path, store: GenomeStore, rows: list[str], *, samples=SAMPLES, indexed: bool = True
) -> Path:
    """A VCF file of rows ``contig pos ref alts genotypes [info]``."""
    pairs = zip(store.names, store.lengths, strict=True)
    contigs = "".join(f"##contig=<ID={name},length={length}>\n" for name, length in pairs)
    names = "".join(f"\t{name}" for name in (("FORMAT", *samples) if samples else ()))
    text = HEADER.format(contigs=contigs)
    text += f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO{names}\n"
    for row in rows:
        contig, pos, ref, alts, genotypes, *info = row.split()
        columns = [contig, pos, ".", ref, alts, ".", ".", info[0] if info else ".", "GT"]
        columns += genotypes.split(",")
        text += "\t".join(columns[: 9 + len(samples) if samples else 8]) + "\n"
    path = folder / "calls.vcf"
    path.write_text(text)
    if not indexed:
        return path
    zipped = folder / "calls.vcf.gz"
    pysam.tabix_compress(str(path), str(zipped), force=True)
    pysam.tabix_index(str(zipped), preset="vcf", force=True)
    return zipped


def letters(found: np.ndarray) -> str:
    return "".join(LETTERS[byte] for byte in found)


def whole(haplotypes: Haplotypes, sample: int, haplotype: int, contig: str) -> str:
    k = haplotypes.store.names.index(contig)
    length = int(haplotypes.store.lengths[k])
    return letters(haplotypes.sequence(sample, haplotype, contig, 0, length))


def consensus(store: GenomeStore, path: Path, sample: str, haplotype: int) -> dict[str, str]:
    words = ["-H", str(haplotype + 1), "-s", sample, "-f", str(store.path), str(path)]
    records = pysam.bcftools.consensus(*words).split(">")[1:]
    return {r.split("\n", 1)[0]: r.split("\n", 1)[1].replace("\n", "") for r in records}


def some_bases(rng: np.random.Generator, n: int) -> str:
    bases = "".join(rng.choice(list("ACGT"), n))
    # Soft-masked stretches, as in a real genome.
    cuts = np.sort(rng.choice(n, 6, replace=False))
    for a, b in cuts.reshape(3, 2):
        bases = bases[:a] + bases[a:b].lower() + bases[b:]
    return bases


def some_rows(rng: np.random.Generator, contig: str, bases: str, every: float) -> list[str]:
    """Random variants, so dense that many touch or overlap each other."""
    rows, at = [], 0
    while (at := at + int(rng.integers(0, 2 * every))) < len(bases) - 12:
        ref = bases[at : at + int(rng.choice([1, 1, 1, 2, 3, 7]))].upper()
        alts = {some_alt(rng, ref) for _ in range(int(rng.integers(1, 4)))} - {ref}
        if not alts:
            continue
        info = ""
        if rng.random() < 0.08:
            ref, alts, info = ref[0], {"<DEL>"}, f"END={at + int(rng.integers(1, 10))}"
        genotypes = ",".join(some_genotype(rng, len(alts)) for _ in SAMPLES)
        rows.append(f"{contig} {at + 1} {ref} {','.join(sorted(alts))} {genotypes} {info}")
    return rows


def some_alt(rng: np.random.Generator, ref: str) -> str:
    match rng.integers(5):
        case 0:
            return ref[: max(1, len(ref) - 2)]
        case 1:
            return ref + "".join(rng.choice(list("ACGT"), rng.integers(1, 6)))
        case 2:
            return ref[0] + "".join(rng.choice(list("acgt"), rng.integers(1, 4)))
        case _:
            return "".join(rng.choice(list("ACGT"), rng.integers(1, len(ref) + 1)))


def some_genotype(rng: np.random.Generator, alts: int) -> str:
    allele = [str(k) for k in range(alts + 1)] + ["."]
    shares = np.array([2.0] + [1.5] * alts + [0.2])
    pair = rng.choice(allele, 2, p=shares / shares.sum())
    return (
        str(rng.choice(["|", "/"], p=[0.95, 0.05])).join(pair) if rng.random() < 0.95 else pair[0]
    )


@pytest.mark.parametrize(("every", "seed"), [(1, 0), (2, 1), (4, 2), (15, 3)])
def test_haplotypes_are_those_of_bcftools(tmp_path, every, seed):
    rng = np.random.default_rng(seed)
    bases = {"chr1": some_bases(rng, 300), "chr2": some_bases(rng, 200), "chr3": "ACGT" * 5}
    store = genome(tmp_path, **bases)
    rows = [r for c in ("chr1", "chr2") for r in some_rows(rng, c, bases[c], every)]
    path = calls(tmp_path, store, rows)
    ours = Haplotypes(store, path)
    for sample, name in enumerate(SAMPLES):
        for haplotype in (0, 1):
            theirs = consensus(store, path, name, haplotype)
            for contig, reference in bases.items():
                found = whole(ours, sample, haplotype, contig)
                assert found == theirs[contig], (name, haplotype, contig)
                cuts = np.sort(rng.integers(0, len(reference) + 1, 12)).tolist()
                parts = [
                    letters(ours.sequence(sample, haplotype, contig, a, b))
                    for a, b in zip([0, *cuts], [*cuts, len(reference)], strict=True)
                ]
                assert "".join(parts) == found


def spoken(found: Haplotypes) -> list[str]:
    """Haplotype 1 of every sample on chr1."""
    return [whole(found, sample, 0, "chr1") for sample in range(len(found.samples))]


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_no_sequence_is_kept_as_the_reference_and_said_once(tmp_path, indexed, capsys):
    store = genome(tmp_path, chr1="ACGTACGTACGT")
    rows = [
        "chr1 2 C <INS>,*,T 1|0,2|0,3|0",
        "chr1 5 A <*>,G 1|0,0|0,2|0 END=8",
        "chr1 6 C T 1|0,1|0,./.",
        "chr1 9 A N,C 1|1,2|1,.|2",
        "chr1 12 T G 1/0,0|1,1/1",
    ]
    found = Haplotypes(store, calls(tmp_path, store, rows, indexed=indexed))
    # The block <*> keeps the reference against the record at 6.
    assert spoken(found) == ["ACGTACGTACGG", "ACGTATGTCCGT", "ATGTGCGTACGG"]
    spoken(found)
    assert (found.kept, found.unphased) == (6, 2)
    note = capsys.readouterr().err.replace("\n", " ")
    assert note.count("is no sequence of A, C, G and T") == 1
    assert note.count("are not phased; their alleles are taken in the order") == 1
    assert "anna at chr1:12" in note


def test_haploid_and_missing_genotypes(tmp_path):
    store = genome(tmp_path, chr1="ACGTACGT")
    found = Haplotypes(store, calls(tmp_path, store, ["chr1 2 C T 1,.,.|1"]))
    assert [whole(found, 0, h, "chr1") for h in (0, 1)] == ["ATGTACGT", "ACGTACGT"]
    assert spoken(found)[1:] == ["ACGTACGT"] * 2
    assert whole(found, 2, 1, "chr1") == "ATGTACGT"


def test_another_reference_is_refused_at_the_door_or_where_it_is_met(tmp_path):
    store = genome(tmp_path, chr1="ACGT" * 100)
    with pytest.raises(InputError) as caught:
        Haplotypes(store, calls(tmp_path, store, ["chr1 2 G T 1|0,0|0,0|0"]))
    (problem,) = caught.value.problems
    assert problem.where == f"{tmp_path / 'calls.vcf.gz'} record chr1:2"
    assert "REF is G, but" in problem.what
    assert "has C there" in problem.what
    assert "bcftools norm --check-ref w" in problem.mend
    rows = [f"chr1 {4 * i + 1} A T 0|0,0|0,0|0" for i in range(30)]
    found = Haplotypes(store, calls(tmp_path, store, [*rows, "chr1 200 A T 0|1,0|0,0|0"]))
    assert len(found.sequence(0, 0, "chr1", 0, 400)) == 400
    with pytest.raises(InputError, match=r"chr1:200: REF is A, but .* has T there"):
        found.sequence(0, 1, "chr1", 150, 300)
    with pytest.raises(InputError, match=r"chr1:398: REF is CGTA, but .* has CGT there"):
        Haplotypes(store, calls(tmp_path, store, ["chr1 398 CGTA C 0|1,0|0,0|0"]))


def test_files_of_no_use_are_refused(tmp_path):
    store = genome(tmp_path, chr1="ACGTACGT")
    other = genome(tmp_path, one="ACGT")
    path = calls(tmp_path, other, ["one 1 A T 1|0,0|0,0|0"])
    with pytest.raises(
        InputError, match=r"names contigs such as one, but .* such as chr1; .*rename"
    ):
        Haplotypes(store, path)
    with pytest.raises(InputError, match="has no genotypes of samples"):
        Haplotypes(other, calls(tmp_path, other, ["one 1 A T ."], samples=()))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"calls\.vcf\.gz: cannot be read as VCF or BCF"):
        Haplotypes(store, path)
    rows = ["chr1 5 A T 1|0,0|0,0|0", "chr1 1 A T 1|0,0|0,0|0"]
    unsorted = calls(tmp_path, store, rows, indexed=False)
    with pytest.raises(InputError, match=r"cannot be indexed .*; `bcftools sort"):
        Haplotypes(store, unsorted)


def test_contigs_without_records_are_the_reference(tmp_path):
    store = genome(tmp_path, chr1="ACGT", chr2="TTTT", chr3="GG")
    path = calls(tmp_path, store, ["chr1 1 A T 1|0,0|0,0|0"])
    found = Haplotypes(store, path)
    assert [whole(found, 0, 0, c) for c in store.names] == ["TCGT", "TTTT", "GG"]


def test_a_window_is_full_though_bases_are_deleted(tmp_path):
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 60))
    store = genome(tmp_path, chr0="ACGTACGT", chr1=bases)
    row = f"chr1 21 {bases[20:50]} {bases[20]} 1|0,1|1,0|0"
    found = Haplotypes(store, calls(tmp_path, store, [row]))
    shorter = bases[:21] + bases[50:]

    def window(u, at, length, within=(0, 60)):
        low, high = within
        return letters(found.window(u, 8 + at, length, (8 + low, 8 + high)))

    assert window(0.0, 10, 20) == shorter[10:30]
    assert window(0.2, 10, 20) == bases[10:30]
    assert window(0.999, 10, 20) == bases[10:30]
    # Few bases are left to the right: those to the left come in.
    assert window(0.0, 35, 20) == shorter[-20:]
    assert window(0.0, 0, 31) == shorter
    # Too few in all, and never beyond the run.
    assert window(0.0, 8, 32) == bases[8:40]
    assert window(0.0, 22, 20, (15, 45)) == bases[22:42]
