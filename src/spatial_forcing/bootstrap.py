"""Bootstrap intervals: of ratios and differences over seeds, and of means pooled over episodes.

All are paired: both arms of a seed, or of an episode, are drawn together. What cannot be computed is None: a
ratio with a seed in it that never reached its target has no value.

Letters: n seeds or episodes, R resamples, K quantities, a the baseline, b the other arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log

import numpy as np

from spatial_forcing.stats import StatsError, check_confidence, check_pairs

# Percentiles of a bootstrap distribution settle in the second digit with this many draws.
RESAMPLES = 10_000


# ---- several seeds -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """An estimate over seeds with its bootstrap interval.

    Attributes:
        value: None if a seed has no number.
        low, high: None if there is no value, or only one seed, which says nothing about the spread.
        seeds: how many seeds went in.
        missing: how many of them have no number (never reached the target).
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: int
    missing: int = 0


def bootstrap_ratio(
    steps_a: Sequence[float | None],
    steps_b: Sequence[float | None],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Geometric mean over seeds of steps_a / steps_b, with a paired percentile bootstrap interval.

        r = exp(mean_i log(a_i / b_i)),    seeds i drawn with replacement, both arms of a seed together

    The geometric mean treats "twice as fast" and "half as fast" alike: swapping the arms gives 1 / r. One
    seed that never reached the target leaves no value, because leaving it out would flatter the arm that
    failed. With few seeds the interval is too narrow: read it as a spread (Efron and Tibshirani 1993, An
    Introduction to the Bootstrap, ch. 13).

    Args:
        steps_a, steps_b: steps to the target, seed by seed; None where it was never reached.

    Raises:
        StatsError: no seeds, different numbers of them, or steps that are not above zero.
    """
    check_pairs(len(steps_a), len(steps_b), "seeds")
    pairs = [(a, b) for a, b in zip(steps_a, steps_b, strict=True) if a is not None and b is not None]
    if any(not (isfinite(x) and x > 0) for pair in pairs for x in pair):
        raise StatsError(f"A ratio of steps needs steps above zero, got {list(steps_a)} and {list(steps_b)}.")
    if len(pairs) < len(steps_a):
        return Estimate(None, None, None, len(steps_a), missing=len(steps_a) - len(pairs))
    mean, low, high = _bootstrap_mean([log(a / b) for a, b in pairs], confidence, resamples, seed)
    low, high = (None if x is None else exp(x) for x in (low, high))
    return Estimate(exp(mean), low, high, len(pairs))


def bootstrap_difference(
    values_a: Sequence[float],
    values_b: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds of b - a, with a paired percentile bootstrap interval.

        d = mean_i (b_i - a_i),    seeds i drawn with replacement, both arms of a seed together

    One seed has a value and no interval; see :func:`bootstrap_ratio` for what few seeds mean.

    Raises:
        StatsError: no seeds, different numbers of them, or a value that is not finite.
    """
    check_pairs(len(values_a), len(values_b), "seeds")
    differences = [float(b) - float(a) for a, b in zip(values_a, values_b, strict=True)]
    if not all(isfinite(d) for d in differences):
        raise StatsError(f"A mean difference needs finite values, got {list(values_a)} and {list(values_b)}.")
    mean, low, high = _bootstrap_mean(differences, confidence, resamples, seed)
    return Estimate(mean, low, high, len(differences))


def _bootstrap_mean(
    values: Sequence[float], confidence: float, resamples: int, seed: int
) -> tuple[float, float | None, float | None]:
    """The mean and its percentile interval; no interval for one value."""
    check_confidence(confidence)
    if resamples < 1:
        raise StatsError(f"A bootstrap needs at least one resample, got {resamples}.")
    x_n = np.asarray(values, dtype=np.float64)
    if len(x_n) == 1:
        return float(x_n[0]), None, None
    draws_Rn = np.random.default_rng(seed).integers(len(x_n), size=(resamples, len(x_n)))
    return float(x_n.mean()), *percentile_interval(x_n[draws_Rn].mean(1), confidence)


# ---- pooled over episodes ----------------------------------------------------------------------------------


def pooled_resamples(
    totals_nK: np.ndarray, counts_n: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray | None:
    """Pooled means of K quantities, in resamples of the episodes they were measured in.

        m_rk = sum_i w_ri T_ik / sum_i w_ri c_i,    w_r ~ Multinomial(n, 1/n): n episodes with replacement

    Frames of one episode are alike, so that episodes and not frames are drawn (the cluster bootstrap: Davison
    and Hinkley 1997, Bootstrap Methods and their Application, ch. 3). The same n, seed and number of
    resamples draw the same episodes: of two arms that were measured in the same episodes, differences are
    paired.

    Args:
        totals_nK: the sums T_ik of the values in episode i.
        counts_n: how many values c_i > 0 that was.

    Returns:
        means_RK, or None for one episode, which says nothing about the spread.

    Raises:
        StatsError: no episodes, an episode without values, or totals that are not finite.
    """
    totals_nK, counts_n = np.asarray(totals_nK, np.float64), np.asarray(counts_n, np.float64)
    n = len(counts_n)
    if n == 0 or len(totals_nK) != n or not (counts_n > 0).all() or not np.isfinite(totals_nK).all():
        raise StatsError("Pooling over episodes needs finite totals and a number of values for each.")
    if n == 1:
        return None
    weights_Rn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return (weights_Rn @ totals_nK) / (weights_Rn @ counts_n)[:, None]


def percentile_interval(values_R: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The middle ``confidence`` of a bootstrap distribution."""
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)
