"""How far a metric, and a difference between two models, would move on other rows.

Rows close together on a chromosome share context, so whole blocks of the genome are resampled;
resampling single rows would give intervals that are too narrow. The methods were chosen by a
simulation of their coverage, which ``tests/evaluation/test_confidence.py`` repeats.

Shapes: N rows, S seeds (models trained alike but for the seed), C classes, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from cedilla.metrics.classification import Floats, Scorer

# Elements of one batch of draws: some tens of megabytes.
BATCH = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A metric with its confidence interval; NaN where it cannot be had."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of one model minus that of another, with interval, two-sided p and `sd`.

    `sd` is the standard error of the difference: the standard deviation over the draws, widened
    by √(U/(U - 1)) for U blocks.
    """

    estimate: float
    low: float
    high: float
    p: float
    sd: float


def block_bootstrap(
    labels: ArrayLike,
    probabilities: ArrayLike,
    blocks: ArrayLike | None,
    *,
    metrics: Sequence[str] = ("auroc", "auprc", "mcc"),
    threshold: float | Sequence[float] = 0.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Confidence intervals of `metrics` by resampling blocks with replacement.

    Parameters
    ----------
    labels:
        (N,) class numbers.
    probabilities:
        (N,) of class 1, (N, C), or with a seed axis in front (S, N) or (S, N, C). The estimate
        is the mean over seeds of the metric, in the data and in each draw, so the interval
        speaks of these S models on other rows, not of further seeds.
    blocks:
        (N,) names of blocks, such as :func:`genomic_blocks`; None resamples rows.
    threshold:
        For class 1, one for all or one per seed, chosen on other rows than these.

    Returns
    -------
    dict
        An :class:`Interval` per metric: the estimate ± t(U - 1) · √(U/(U - 1)) · sd of the draws
        for U blocks (the root, because resampling U blocks spreads too little), computed on the
        logit scale (for MCC, of (1 + MCC) / 2) so that it stays in range. For an area
        near 1 in 100 rows this covers 95 % where the percentile interval covers 85 %. A metric
        at the end of its scale, which no draw can leave, gets the binomial bound for as many
        faultless blocks as the rarest class has. Draws that hold one class only are left out.

    Raises
    ------
    ValueError
        For fewer than two blocks, or arrays that :class:`Scorer` refuses.

    Notes
    -----
    The logit interval for areas: Boyd, Eng and Page, ECML PKDD 2013.
    """
    numbers, codes = _rows(labels, blocks)
    scorers = _scorers(numbers, probabilities, threshold, metrics)
    estimates = _mean_over_seeds(scorers, None)
    drawn = _distributions(numbers, codes, [scorers], draws, seed)[0]
    return {
        name: _logit_interval(
            float(estimates[name][0]),
            drawn[name],
            name=name,
            codes=codes,
            scorers=scorers,
            tail=(1 - level) / 2,
        )
        for name in metrics
    }


def paired_block_bootstrap(
    labels: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    blocks: ArrayLike | None,
    *,
    metrics: Sequence[str] = ("auroc", "auprc", "mcc"),
    threshold_a: float | Sequence[float] = 0.5,
    threshold_b: float | Sequence[float] = 0.5,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Differences `a` minus `b` in `metrics`, both scored on the same resampled blocks.

    Parameters are those of :func:`block_bootstrap`; `a` and `b` hold predictions for the same
    rows and may differ in seeds and thresholds. The same `blocks` and `seed` give the same draws
    in both functions.

    Returns
    -------
    dict
        A :class:`Difference` per metric. The interval is the expanded percentile interval, whose
        tails allow for few blocks. p is twice the smaller share of draws at or beyond zero, each
        count plus one (so no p is below 2 / (draws + 1) before the same allowance for few
        blocks), at most 1, so that p and interval agree about zero. Predictions that score the
        same in every draw have p = 1.

    Notes
    -----
    Expanded percentiles: Hesterberg, The American Statistician 69 (2015) 371–386. Adding one:
    Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 4.
    """
    numbers, codes = _rows(labels, blocks)
    arms = [
        _scorers(numbers, a, threshold_a, metrics),
        _scorers(numbers, b, threshold_b, metrics),
    ]
    ours, theirs = (_mean_over_seeds(arm, None) for arm in arms)
    drawn_a, drawn_b = _distributions(numbers, codes, arms, draws, seed)
    units = int(codes.max()) + 1
    return {
        name: _difference(
            float(ours[name][0] - theirs[name][0]),
            drawn_a[name] - drawn_b[name],
            units,
            (1 - level) / 2,
        )
        for name in metrics
    }


def smallest_detectable(difference_sd: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided test at `alpha` finds with probability `power`.

    `difference_sd` is the standard error of the difference, :attr:`Difference.sd`.
    """
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * difference_sd)


def genomic_blocks(chrom: ArrayLike, start0: ArrayLike, size: int = 2_000_000) -> NDArray[np.str_]:
    """The block that each locus falls in, named ``chr8:4000000`` by its 0-based start.

    `chrom` (N,) and `start0` (N,) of 0-based starts → (N,). Raises :class:`ValueError` for a
    start that is negative or missing. Blocks of 1–5 Mb hold most of the correlation between
    neighbouring loci; five chromosomes would be too few to resample.
    """
    starts = np.asarray(start0)
    if not np.all(starts >= 0):
        raise ValueError("start0 must be 0 or more, and not missing; leave out loci without one")
    first = starts.astype(np.int64) // size * size
    names = np.asarray(chrom, dtype=np.str_)
    return np.char.add(np.char.add(names, ":"), first.astype(np.str_))


def _rows(labels: ArrayLike, blocks: ArrayLike | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The labels, and the number 0 … U-1 of each row's block."""
    numbers = np.asarray(labels)
    names = np.arange(len(numbers)) if blocks is None else np.asarray(blocks)
    if len(names) != len(numbers):
        raise ValueError(f"{len(names)} blocks for {len(numbers)} rows")
    found, codes = np.unique(names, return_inverse=True)
    if len(found) < 2:
        raise ValueError("one block only: nothing can be resampled")
    return numbers, codes


def _scorers(
    labels: NDArray[Any],
    probabilities: ArrayLike,
    threshold: float | Sequence[float],
    metrics: Sequence[str],
) -> list[Scorer]:
    """A scorer per seed."""
    p = np.asarray(probabilities)
    if p.ndim == 1 or (p.ndim == 2 and p.shape[1] != len(labels)):
        p = p[None]
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=float), (len(p),))
    return [
        Scorer(labels, of_seed, threshold=float(cut), metrics=metrics)
        for of_seed, cut in zip(p, thresholds, strict=True)
    ]


def _mean_over_seeds(
    scorers: Sequence[Scorer], weights: NDArray[np.int32] | None
) -> dict[str, Floats]:
    """Each metric (D,), averaged over the scorers."""
    scored = [scorer(weights) for scorer in scorers]
    return {name: np.mean([one[name] for one in scored], axis=0) for name in scored[0]}


def _weights(codes: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Batches of (d, N): how often each draw of as many blocks as there are holds each row."""
    rng, units = np.random.default_rng(seed), int(codes.max()) + 1
    step = max(1, BATCH // len(codes))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        picked = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        times = np.bincount(picked.ravel(), minlength=count * units).reshape(count, units)
        yield times.astype(np.int32)[:, codes]


def _distributions(
    labels: NDArray[Any],
    codes: NDArray[np.int64],
    arms: Sequence[Sequence[Scorer]],
    draws: int,
    seed: int,
) -> list[dict[str, Floats]]:
    """For each arm the metrics in every draw that holds two classes or more."""
    is_class = (labels[:, None] == np.unique(labels)).astype(np.float64)
    batches: list[list[dict[str, Floats]]] = [[] for _ in arms]
    for weights in _weights(codes, draws, seed):
        usable = weights[((weights @ is_class) > 0).sum(axis=1) >= 2]
        if len(usable):
            for batch, scorers in zip(batches, arms, strict=True):
                batch.append(_mean_over_seeds(scorers, usable))
    return [
        {
            name: np.concatenate([np.empty(0), *(part[name] for part in batch)])
            for name in scorers[0].metrics
        }
        for batch, scorers in zip(batches, arms, strict=True)
    ]


def _logit_interval(
    estimate: float,
    drawn: Floats,
    *,
    name: str,
    codes: NDArray[np.int64],
    scorers: Sequence[Scorer],
    tail: float,
) -> Interval:
    """The t interval on the logit scale, with the sd carried there by the delta method."""
    if np.isnan(estimate) or len(drawn) < 2:
        return Interval(estimate=estimate, low=np.nan, high=np.nan)
    # MCC is moved from [-1, 1] to the unit scale of the others.
    offset, span = (-1.0, 2.0) if name == "mcc" else (0.0, 1.0)
    unit, sd = (estimate - offset) / span, float(drawn.std(ddof=1)) / span
    if unit in (0.0, 1.0):
        # Were a share of the weakest class called wrong, no metric would lose more than that.
        n = _weakest_class(name, codes, scorers)
        lost = 1 - tail ** (1 / n) if n else 1.0
        low, high = (1 - lost, 1.0) if unit == 1.0 else (offset, offset + lost)
        return Interval(estimate=estimate, low=low, high=high)
    units = int(codes.max()) + 1
    half = float(student.ppf(1 - tail, units - 1)) * _stretch(units) * sd / (unit * (1 - unit))
    low, high = (offset + span * float(expit(logit(unit) + side)) for side in (-half, half))
    return Interval(estimate=estimate, low=low, high=high)


def _weakest_class(name: str, codes: NDArray[np.int64], scorers: Sequence[Scorer]) -> int:
    """How many blocks hold the class with the fewest; for precision, rows of it called right."""
    held = [
        scorer.labels == k
        if name != "precision"
        else (scorer.labels == k) & (scorer.predicted == k)
        for scorer in scorers
        for k in np.unique(scorer.labels)
    ]
    return min(len(np.unique(codes[rows])) for rows in held)


def _difference(estimate: float, drawn: Floats, units: int, tail: float) -> Difference:
    if np.isnan(estimate) or len(drawn) < 2:
        return Difference(estimate=estimate, low=np.nan, high=np.nan, p=np.nan, sd=np.nan)
    stretch = _stretch(units)
    read = float(norm.cdf(stretch * student.ppf(tail, units - 1)))
    low, high = np.quantile(drawn, [read, 1 - read])
    beyond = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    share = min(0.5, (1 + beyond) / (len(drawn) + 1))
    p = 2 * float(student.cdf(norm.ppf(share) / stretch, units - 1))
    sd = stretch * float(drawn.std(ddof=1))
    return Difference(estimate=estimate, low=float(low), high=float(high), p=p, sd=sd)


def _stretch(units: int) -> float:
    """How much wider the truth spreads than draws of as many blocks as there are."""
    return float(np.sqrt(units / (units - 1)))
