"""Simulated loci: sequences whose methylation follows from them, and calls as an assay sees it.

A locus is a CpG island (unmethylated) or background (methylated). Sequences come from a
first-order Markov chain whose composition varies from locus to locus around published values:

- islands: GC above .5 and CpG observed/expected above .6 by definition (Gardiner-Garden & Frommer
  1987, J Mol Biol 196:261); most have a GC content of 60–70 %;
- background: GC 41 %, CpG at a fifth of its expected frequency (Lander et al. 2001, Nature
  409:860).

Draws that the definition would put into the other kind are drawn again, so without noise the rule
"CpG o/e above .6 is unmethylated" is exact, and a model of sequence can reach an MCC of 1. With
noise q no model of sequence is right at more than 1 − q of the loci (an MCC of 1 − 2q), while beta
still shows the state. None of it is evidence about methylation: the answer was put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

SPLITS = ("train", "dev", "test")
ISLAND_OE = 0.6  # with ISLAND_GC the definition of Gardiner-Garden & Frommer
ISLAND_GC = 0.5
DEAMINATED = 0.5  # share of the lost CpGs that are TpG and CpA, what a methylated C decays to
COMETHYLATION_BP = 300.0  # neighbours agree within about 1 kb (Eckhardt et al. 2006)
DISPERSION = 5.0  # of the negative binomial: coverage varies more than a Poisson count
LOST_LOCI = 0.25  # share of the missing CpGs that are missing with their whole locus

_BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
_C, _G = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """GC content and CpG observed/expected of a kind of locus, as mean and standard deviation."""

    gc: float
    gc_sd: float
    oe: float
    oe_sd: float


ISLAND = Composition(gc=0.65, gc_sd=0.025, oe=0.80, oe_sd=0.05)
BACKGROUND = Composition(gc=0.41, gc_sd=0.025, oe=0.20, oe_sd=0.04)
# Parameters (a, b) of the Beta distribution of a CpG's true beta: means .05 and .87.
BETA_UNMETHYLATED = (1.2, 22.8)
BETA_METHYLATED = (13.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a simulation is made of; :func:`cedilla.methylation.simulate.simulate` explains each."""

    n: int
    length: int
    noise: float
    missing: float
    coverage: float
    seed: int
    splits: tuple[float, float, float]


def simulate_loci(parameters: Parameters) -> pd.DataFrame:
    """Loci, a row each, in an order that says nothing; the columns are those of ``train.parquet``.

    ``cpg_pos0``, ``cpg_beta`` and ``cpg_coverage`` are arrays over the CpGs of a locus. A CpG
    that was not measured has a beta of NaN and a coverage of 0; so has ``beta``, the mean over
    the measured CpGs, where there are none.
    """
    p, n = parameters, parameters.n
    rng = np.random.default_rng(p.seed)
    island = rng.permutation(np.arange(n) < n // 2)
    codes = sample_sequences(island, p.length, rng)
    methylated = ~island ^ (rng.random(n) < p.noise)

    locus, pos0 = np.nonzero(_is_cpg(codes))
    true = sample_betas(locus, pos0, methylated[locus], rng)
    reads = sample_coverage(locus, n, p.coverage, p.missing, rng)
    n_mod = rng.binomial(reads, true)
    beta = np.divide(n_mod, reads, out=np.full(len(reads), np.nan), where=reads > 0)

    ends = np.cumsum(np.bincount(locus, minlength=n))[:-1]
    gc, oe = cpg_statistics(codes)
    return pd.DataFrame(
        {
            "id": [f"locus{k:0{len(str(n))}d}" for k in range(1, n + 1)],
            "sequence": _BASES[codes].view(f"S{p.length}").ravel().astype(str),
            "label": methylated.astype(np.int64),
            "beta": _mean_by_locus(beta, locus, n).astype(np.float32),
            "cpg_pos0": np.split(pos0.astype(np.int32), ends),
            "cpg_beta": np.split(beta.astype(np.float32), ends),
            "cpg_coverage": np.split(reads.astype(np.int32), ends),
            "cpg_oe": oe.astype(np.float32),
            "gc": gc.astype(np.float32),
            "split": stratified_splits(2 * island + methylated, p.splits, rng),
        }
    )


def sample_sequences(island: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Base codes (n, length), A 0 to T 3: CpG islands where `island` (n,) is true.

    Every sequence has a CpG, and each is an island by definition, or not, as asked.
    """
    codes = np.empty((len(island), length), dtype=np.uint8)
    todo = np.arange(len(island))
    while len(todo):
        codes[todo] = _walk(*_draw_composition(island[todo], rng), length, rng)
        gc, oe = cpg_statistics(codes[todo])
        is_island = (gc > ISLAND_GC) & (oe > ISLAND_OE)
        is_background = (oe > 0) & (oe <= ISLAND_OE)
        todo = todo[~np.where(island[todo], is_island, is_background)]
    return codes


def transition_matrices(gc: np.ndarray, oe: np.ndarray) -> np.ndarray:
    """Markov chains with base composition `gc` (n,) and CpG observed/expected `oe` (n,).

    Returns P (n, 4, 4), rows summing to 1 in the order A, C, G, T. CpGs below expectation are
    given to the other dinucleotides, first to TpG and CpA, so that the composition stays as it is
    and both strands have the same statistics.
    """
    pi = np.stack([1 - gc, gc, gc, 1 - gc], axis=1) / 2
    rest = (1 - DEAMINATED) / 2
    first = np.array([-rest, 1.0, -rest, -DEAMINATED])
    second = np.array([-DEAMINATED, -rest, 1.0, -rest])
    deficit = (1 - oe) * pi[:, _C] * pi[:, _G]
    joint = pi[:, :, None] * pi[:, None, :] - deficit[:, None, None] * np.outer(first, second)
    return joint / pi[:, :, None]


def sample_betas(
    locus: np.ndarray, pos0: np.ndarray, methylated: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """True betas (M,) of CpGs sorted by locus and position, near 0 or near 1 by their state.

    A Gaussian copula makes neighbours within a locus alike, the more the closer they are.
    """
    new = np.diff(locus, prepend=-1) != 0
    with_previous = np.exp(-np.abs(np.diff(pos0, prepend=0)) / COMETHYLATION_BP)
    correlation = np.where(new, 0.0, with_previous)
    z = rng.standard_normal(len(locus))
    rank = np.arange(len(locus)) - np.flatnonzero(new)[np.cumsum(new) - 1]
    for k in range(1, rank.max() + 1):
        at = np.flatnonzero(rank == k)
        r = correlation[at]
        z[at] = r * z[at - 1] + np.sqrt(1 - r**2) * z[at]
    a, b = np.where(methylated[:, None], BETA_METHYLATED, BETA_UNMETHYLATED).T
    return special.betaincinv(a, b, special.ndtr(z))


def sample_coverage(
    locus: np.ndarray, n: int, mean: float, missing: float, rng: np.random.Generator
) -> np.ndarray:
    """Reads (M,) over each CpG: 0 for a share `missing`, else at least 1 and `mean` on average."""
    lost_loci = missing * LOST_LOCI
    lost_cpgs = (missing - lost_loci) / (1 - lost_loci)
    lost = (rng.random(n) < lost_loci)[locus] | (rng.random(len(locus)) < lost_cpgs)
    reads = 1 + rng.negative_binomial(DISPERSION, DISPERSION / (DISPERSION + mean - 1), len(locus))
    return np.where(lost, 0, reads)


def stratified_splits(
    strata: np.ndarray, splits: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """The split of each of n loci: sizes exact, every stratum shared out in proportion."""
    n = len(strata)
    sizes = np.diff(np.rint(np.cumsum([0.0, *splits]) * n).astype(int))
    # Each split's places are spread evenly over 0 to 1; a stratum is a run of these places.
    places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size])
    turn = np.repeat(SPLITS, sizes)[np.argsort(places, kind="stable")]
    assigned = np.empty(n, dtype=turn.dtype)
    assigned[np.lexsort((rng.random(n), strata))] = turn
    return assigned


def cpg_statistics(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GC content (n,) and CpG observed/expected (n,) of base codes (n, L).

    Observed/expected is the number of CpGs times L over the number of Cs times that of Gs
    (Gardiner-Garden & Frommer 1987); 0 where there is no CpG.
    """
    c, g = (codes == _C).sum(axis=1), (codes == _G).sum(axis=1)
    observed = _is_cpg(codes).sum(axis=1) * codes.shape[1]
    return (c + g) / codes.shape[1], observed / np.maximum(c * g, 1)


def _draw_composition(
    island: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    def draw(inside: tuple[float, float], outside: tuple[float, float]) -> np.ndarray:
        mean, sd = np.where(island[:, None], inside, outside).T
        # Within 3 sd the chain's probabilities stay positive.
        return mean + sd * np.clip(rng.standard_normal(len(island)), -3, 3)

    gc = draw((ISLAND.gc, ISLAND.gc_sd), (BACKGROUND.gc, BACKGROUND.gc_sd))
    return gc, draw((ISLAND.oe, ISLAND.oe_sd), (BACKGROUND.oe, BACKGROUND.oe_sd))


def _walk(gc: np.ndarray, oe: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    n = len(gc)
    limits = np.cumsum(transition_matrices(gc, oe), axis=2)[:, :, :3]
    start = np.cumsum(np.stack([1 - gc, gc, gc], axis=1) / 2, axis=1)
    codes = np.empty((n, length), dtype=np.uint8)
    rows = np.arange(n)
    for at in range(length):
        threshold = limits[rows, codes[:, at - 1]] if at else start
        codes[:, at] = (rng.random(n)[:, None] >= threshold).sum(axis=1)
    return codes


def _is_cpg(codes: np.ndarray) -> np.ndarray:
    return (codes[:, :-1] == _C) & (codes[:, 1:] == _G)


def _mean_by_locus(beta: np.ndarray, locus: np.ndarray, n: int) -> np.ndarray:
    measured = ~np.isnan(beta)
    sums = np.bincount(locus[measured], weights=beta[measured], minlength=n)
    sizes = np.bincount(locus[measured], minlength=n)
    return np.divide(sums, sizes, out=np.full(n, np.nan), where=sizes > 0)
