"""Names of array probes: Illumina's grammar for 27k, 450k, EPIC and EPICv2.

- ``cg`` and 8 digits: a CpG;
- ``ch.22.909671F``: a C not followed by G, by chromosome, coordinate and strand (F or R);
- ``rs`` and digits: a polymorphism;
- ``nv-GRCh38-chr17-7675160-7675160-G-A``: a somatic variant, on EPICv2;
- on EPICv2 a suffix such as ``_TC21``: top or bottom strand, converted or opposite strand, design
  type and number of the replicate. Replicates are probes of their own, not duplicates.

Source: Illumina's manifests and their column descriptions.
"""

from __future__ import annotations

import re

import pandas as pd

_CHROMOSOME = r"(?:[1-9]|1[0-9]|2[0-2]|X|Y)"
PROBE_ID = re.compile(
    r"(?:cg[0-9]{8}"
    rf"|ch\.{_CHROMOSOME}\.[0-9]+[FR]"
    r"|rs[0-9]+"
    # Some exports append the replicate's number to the allele.
    rf"|nv-GRCh[0-9]{{2}}-chr{_CHROMOSOME}-[0-9]+-[0-9]+-[ACGT]+-[ACGT]+[0-9]*)"
    r"(?:_[TB][CO][1-9][0-9]*)?"
)


def are_probe_ids(names: pd.Series) -> pd.Series:
    """Whether each of `names` follows the grammar; false where it is missing."""
    return names.astype("string").str.fullmatch(PROBE_ID).fillna(False).astype(bool)


def look_like_probes(names: pd.Series) -> bool:
    """Whether most of `names` are probe ids, judged by the first thousand."""
    head = names.head(1000)
    return len(head) > 0 and bool(are_probe_ids(head).mean() > 0.5)
