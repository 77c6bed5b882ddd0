"""Haplotypes on the fly: a reference genome with the phased alleles of a VCF or BCF file.

The alleles are put in place as ``bcftools consensus --sample S --haplotype 1`` (or 2) of bcftools
1.2x does (its ``consensus.c``, which the tests run beside):

- In the file's order, a record whose first base lies within an allele that is in place already is
  left out; one that begins at the last base of it is not, if it is an insertion or deletion whose
  alleles share their first base, and no insertion came just before.
- An allele takes the case of the reference base at its position.
- ``<DEL>`` deletes to the record's end; ``<*>`` and ``<NON_REF>`` keep the reference, and keep
  other records off it. Any other symbolic allele, breakend or ``*`` stops bcftools or is written
  out by it; here the reference is kept, and a note says so once.
- A missing allele, and the second one of a haploid genotype, are the reference. Alleles that are
  not phased are taken in the order in which they are written; a note says so once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pysam.bcftools

from cedilla.dna import alphabet
from cedilla.dna.genome_store import CODE, SOFT, GenomeStore, N
from cedilla.errors import InputError
from cedilla.files import cache_dir, whole_file
from cedilla.progress import console

CHECKED = 20  # records a contig whose REF is compared with the genome at the door
_REFERENCE_BLOCKS = ("<*>", "<NON_REF>")
_CODES = {letter: alphabet.BASES.index(alphabet.clean(letter)) for letter in "ACGTUacgtu"}


@dataclass(frozen=True, slots=True)
class _Allele:
    """What one haplotype has instead of the reference bases from start0 to end0.

    bases: None for the reference itself, which is kept against records that follow.
    """

    start0: int
    end0: int
    ref: str
    bases: str | None
    deleted: bool = False  # symbolic

    @property
    def keeps_first(self) -> bool:
        """Whether its change begins after the first base, as that of indels does."""
        if self.bases is None:
            return False
        return self.deleted or (_is_indel(self.ref, self.bases) and self.ref[0] == self.bases[0])

    @property
    def length_change(self) -> int:
        """Bases more than the reference has."""
        return 0 if self.bases is None else len(self.bases) - (self.end0 - self.start0)


def _is_indel(ref: str, alt: str) -> bool:
    """Whether one allele is the other with bases put in at one place, as htslib decides it."""
    r, a = ref.upper(), alt.upper()
    shared = next((i for i, (x, y) in enumerate(zip(r, a, strict=False)) if x != y), None)
    if shared is None:
        return len(r) != len(a)
    r, a = r[shared:], a[shared:]
    while len(r) > 1 and len(a) > 1 and r[-1] == a[-1]:
        r, a = r[:-1], a[:-1]
    return len(r) != len(a) and min(len(r), len(a)) == 1 and r[-1] == a[-1]


class Haplotypes:
    """The haplotypes of a VCF file's samples over a stored genome.

    Records are read by region through the file's index. A file without one, also an uncompressed
    one, is turned once into an indexed BCF file in ``cache_dir()/variants``.

    Parameters
    ----------
    store:
        The reference.
    path:
        A VCF or BCF file with phased genotypes, sorted by position.

    Raises
    ------
    InputError
        For a file that cannot be read or sorted into an index, without samples or genotypes,
        whose contigs are none of the genome's, or whose REF alleles are not the genome's bases.
    """

    def __init__(self, store: GenomeStore, path: Path) -> None:
        self.store, self.path = store, path
        self._noted: set[str] = set()
        self.unphased = 0  # heterozygous genotypes met that are not phased
        self.kept = 0  # alleles met that are no bases, where the reference is kept
        self._file = _indexed(path)
        self.samples = tuple(self._file.header.samples)
        if not self.samples or "GT" not in self._file.header.formats:
            what = "has no genotypes of samples"
            raise InputError.one(path, what, "a VCF file with phased GT is needed")
        self._lengths = dict(zip(store.names, store.lengths.tolist(), strict=True))
        self._offsets = dict(zip(store.names, store.offsets.tolist(), strict=True))
        self._contigs = set(self._file.header.contigs) & set(store.names)
        self._check_reference()

    def _check_reference(self) -> None:
        if not self._contigs:
            theirs, ours = next(iter(self._file.header.contigs), "none"), self.store.names[0]
            what = f"names contigs such as {theirs}, but {self.store.path} such as {ours}"
            mend = "`bcftools annotate --rename-chrs` gives them the same names"
            raise InputError.one(self.path, what, mend)
        for contig in sorted(self._contigs):
            for count, record in enumerate(self._file.fetch(contig)):
                if count == CHECKED:
                    break
                self._refuse_other_reference(record)

    def _refuse_other_reference(self, record: Any) -> None:
        there = self._reference(record.contig, record.start, record.start + len(record.ref)) & CODE
        told = np.array([_CODES.get(letter, N) for letter in record.ref], dtype=np.uint8)
        same = len(there) == len(told) and ((there == told) | (there == N) | (told == N)).all()
        if not same:
            found = "".join(alphabet.BASES[code] for code in there) or "nothing"
            raise InputError.one(
                f"{self.path} record {record.contig}:{record.pos}",
                f"REF is {record.ref:.40}, but {self.store.path} has {found:.40} there",
                "take the genome that the variants were called on; `bcftools norm --check-ref w "
                "--fasta-ref` lists all such records",
            )

    def _reference(self, contig: str, start0: int, end0: int) -> np.ndarray:
        """The bytes of the reference, cut off at the contig's end."""
        offset = self._offsets[contig]
        return self.store.bases[offset + start0 : offset + min(end0, self._lengths[contig])]

    def window(self, u: float, at: int, length: int, within: tuple[int, int]) -> np.ndarray:
        """`length` bytes of a haplotype, that of number `u` in [0, 1) of all.

        They begin at the base that is `at` in the store's bases, or further left if deletions
        leave too few up to the end of `within`, an interval without N around it; if they leave
        too few in all of it, the reference is given.
        """
        chosen = int(u * 2 * len(self.samples))
        sample, haplotype = divmod(min(chosen, 2 * len(self.samples) - 1), 2)
        k = int(np.searchsorted(self.store.offsets, at, side="right")) - 1
        contig, offset = self.store.names[k], int(self.store.offsets[k])
        low, high = within[0] - offset, within[1] - offset
        start0 = at - offset
        end0 = min(high, start0 + length)
        while True:
            bases = self.sequence(sample, haplotype, contig, start0, end0)
            if (short := length - len(bases)) <= 0:
                return bases[:length]
            if (start0, end0) == (low, high):
                return self.store.bases[at : at + length]
            # Twice what is wanting, as there may be deletions there, too.
            end0, beyond = min(high, end0 + 2 * short), max(0, end0 + short - high)
            start0 = max(low, start0 - beyond)

    def sequence(
        self, sample: int, haplotype: int, contig: str, start0: int, end0: int
    ) -> np.ndarray:
        """The bytes that a haplotype has for the reference bases from start0 to end0.

        `sample` is its number in `samples`, `haplotype` 0 or 1. Inserted bases go with the last
        base of their REF allele, so that the sequences of adjacent intervals make up a contig.
        Raises :class:`InputError` at a record whose REF is not the genome's.
        """
        if contig not in self._contigs:
            return self._reference(contig, start0, end0)
        alleles = self._alleles(sample, haplotype, contig, start0, end0)
        if not alleles:
            return self._reference(contig, start0, end0)
        low = min(start0, alleles[0].start0)
        high = max(end0, *(allele.end0 for allele in alleles))
        draft = _Draft(low, self._reference(contig, low, high))
        for allele in alleles:
            draft.put(allele)
        return draft.between(start0, end0)

    def _alleles(
        self, sample: int, haplotype: int, contig: str, start0: int, end0: int
    ) -> list[_Allele]:
        """All alleles that have a say in an interval, in the file's order."""
        found: dict[int, list[_Allele]] = {}
        regions, seen = [(start0, end0)], set()
        while regions:
            first, last = region = regions.pop()
            if region in seen:
                continue
            seen.add(region)
            for allele in self._read(sample, haplotype, contig, first, last):
                # Whether it is left out is decided by those over its first base; and records of
                # one position are taken from one reading, in the file's order.
                if allele.start0 < first:
                    regions.append((allele.start0, allele.start0 + 1))
                    continue
                found.setdefault(allele.start0, []).append(allele)
                if allele.end0 > end0 > allele.start0:
                    regions.append((allele.end0 - 1, allele.end0))
        return [allele for start in sorted(found) for allele in found[start]]

    def _read(
        self, sample: int, haplotype: int, contig: str, start0: int, end0: int
    ) -> Iterator[_Allele]:
        for record in self._file.fetch(contig, start0, end0):
            if allele := self._allele_of(record, sample, haplotype):
                yield allele

    def _allele_of(self, record: Any, sample: int, haplotype: int) -> _Allele | None:
        """What the record puts in place of the reference, if anything."""
        genotype = record.samples[sample]
        indices = genotype.allele_indices or ()
        if len(indices) <= haplotype or not indices[haplotype]:
            return None
        where = f"{record.contig}:{record.pos}"
        if len(set(indices)) > 1 and not genotype.phased:
            self.unphased += 1
            self._note(
                "unphased",
                f"heterozygous genotypes such as that of {self.samples[sample]} at {where} are "
                "not phased; their alleles are taken in the order in which they are written",
            )
        self._refuse_other_reference(record)
        start0, ref, alt = record.start, record.ref, record.alleles[indices[haplotype]]
        if alt.upper() == "<DEL>":
            end0 = min(record.stop, self._lengths[record.contig])
            return _Allele(start0, end0, ref, ref[0], deleted=True)
        if alt.upper() in _REFERENCE_BLOCKS:
            return _Allele(start0, record.stop, ref, None)
        if not set(alt) <= _CODES.keys():
            self.kept += 1
            what = f"{alt:.40} at {where} is no sequence of A, C, G and T"
            self._note("kept", f"{what}; such alleles are left out, and the reference kept")
            return None
        return _Allele(start0, start0 + len(ref), ref, alt)

    def _note(self, kind: str, text: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            console.print(
                f"note: {self.path}: {text}", markup=False, highlight=False, soft_wrap=True
            )


class _Draft:
    """Reference bytes into which alleles are put, each base with the position it goes with."""

    def __init__(self, start0: int, reference: np.ndarray) -> None:
        self.start0 = start0
        self.bases = bytearray(reference)
        self.places = np.arange(start0, start0 + len(reference))
        self.shift = 0  # bases that the alleles so far have added
        self.frozen = -1  # the last reference base that an allele has taken
        self.after_insertion = False

    def put(self, allele: _Allele) -> None:
        """Put an allele in place, unless it overlaps the one before."""
        start, frozen = allele.start0, self.frozen
        at_last = start == frozen and allele.keeps_first and allele.length_change != 0
        if start <= frozen and (not at_last or self.after_insertion):
            return
        if allele.bases is not None:
            self._replace(allele, allele.bases, start - self.start0 + self.shift)
        self.shift += allele.length_change
        self.after_insertion = allele.length_change > 0
        self.frozen = allele.end0 - 1

    def _replace(self, allele: _Allele, bases: str, at: int) -> None:
        soft = self.bases[at] & SOFT
        cased = bases.lower() if soft else bases.upper()
        keep = int(allele.keeps_first)
        if allele.length_change > 0:
            # bcftools compares letters after it has set the allele's case: in lower case, the
            # first base of an insertion replaces that of an allele just before.
            keep = int(allele.ref[0] == cased[0])
        size = allele.end0 - allele.start0
        new = bytes(_CODES[letter] | soft for letter in bases[keep:])
        places = np.minimum(np.arange(keep, len(bases)), size - 1) + allele.start0
        self.bases[at + keep : at + size] = new
        self.places = np.concatenate([self.places[: at + keep], places, self.places[at + size :]])

    def between(self, start0: int, end0: int) -> np.ndarray:
        """The bytes that go with the reference bases from start0 to end0."""
        inside = (self.places >= start0) & (self.places < end0)
        return np.frombuffer(bytes(self.bases), dtype=np.uint8)[inside]


def _indexed(path: Path) -> Any:
    """The open file, read by region; its own index is used where there is one."""
    quiet = pysam.set_verbosity(0)  # htslib's words go to standard error otherwise
    try:
        opened = pysam.VariantFile(str(path))
        if opened.index is not None:
            return opened
        opened.close()
        return pysam.VariantFile(str(_as_bcf(path)))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        mend = "is it a whole VCF or BCF file? `bcftools view` tests it"
        raise InputError.one(path, "cannot be read as VCF or BCF", mend) from None
    finally:
        pysam.set_verbosity(quiet)


def _as_bcf(path: Path) -> Path:
    state = path.stat()
    key = repr((str(path.resolve()), state.st_size, state.st_mtime_ns))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    bcf = cache_dir() / "variants" / f"{path.name}-{name}.bcf"
    index = bcf.with_name(f"{bcf.name}.csi")
    if index.exists():
        return bcf
    try:
        with whole_file(bcf) as draft:
            pysam.bcftools.view("-Ob", "-o", str(draft), str(path), catch_stdout=False)
        with whole_file(index) as draft:
            pysam.bcftools.index("-f", "-o", str(draft), str(bcf), catch_stdout=False)
    except pysam.SamtoolsError as error:
        reason = str(error).strip().splitlines()[-1]
        mend = "`bcftools sort --write-index -Ob` makes a file that can be read"
        raise InputError.one(path, f"cannot be indexed ({reason:.200})", mend) from None
    except OSError as error:
        what = f"cannot hold an indexed copy of {path.name} ({error.strerror or error})"
        mend = f"`bcftools index {path.name}` beside it, or set CEDILLA_CACHE to another folder"
        raise InputError.one(cache_dir(), what, mend) from None
    return bcf
