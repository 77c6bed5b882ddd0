"""The DNA alphabet: what a base is, how it is cleaned, complemented and stored in arrays.

Upper-case strings at the edges; inside, ``uint8`` codes A 0, C 1, G 2, T 3, N 4.
"""

from __future__ import annotations

import re

import numpy as np

BASES = "ACGTN"
IUPAC = "ACGTUNRYSWKMBDHV"
_CLEAN = str.maketrans(
    IUPAC + IUPAC.lower(), ("ACGTT" + "N" * 11) * 2
)  # U is read as T; a code for several bases as N
_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
_FORBIDDEN = re.compile(f"[^{IUPAC}{IUPAC.lower()}]")
_AMBIGUOUS = re.compile("[RYSWKMBDHVryswkmbdhv]")

_CODES = np.full(256, 4, dtype=np.uint8)
for _code, _base in enumerate(BASES):
    _CODES[ord(_base)] = _code


def first_forbidden(sequence: str) -> int | None:
    """The 0-based index of the first character that is no IUPAC nucleotide code, if any."""
    match = _FORBIDDEN.search(sequence)
    return match.start() if match else None


def count_ambiguous(sequence: str) -> int:
    """How many characters are IUPAC codes for several bases (N itself is not counted)."""
    return len(_AMBIGUOUS.findall(sequence))


def clean(sequence: str) -> str:
    """`sequence` in upper case, with U as T and every ambiguous IUPAC code as N."""
    return sequence.translate(_CLEAN)


def reverse_complement(sequence: str) -> str:
    """The other strand of a clean sequence, 5′ to 3′."""
    return sequence.translate(_COMPLEMENT)[::-1]


def encode(sequence: str) -> np.ndarray:
    """A clean sequence as ``uint8`` codes (L,): A 0, C 1, G 2, T 3, anything else 4 (N)."""
    return _CODES[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]
