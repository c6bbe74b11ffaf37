"""Bootstrap intervals: over seeds, over seeds and the episodes in each, and of means pooled over episodes.

All are paired: both arms of a seed, or of an episode, are drawn together. What cannot be computed is None.

Letters: n seeds or episodes, R resamples, K quantities, a the baseline, b the other arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log

import numpy as np

from spatial_forcing.stats import StatsError, check_confidence, check_pairs

# Percentiles of a bootstrap distribution settle in the second digit with this many draws.
RESAMPLES = 10_000
# Resamples of fewer seeds or episodes are those themselves and their mean, which is no interval.
LEAST = 3


# ---- several seeds -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """An estimate over seeds with its bootstrap interval.

    Attributes:
        value: the estimate; None for a ratio to zero.
        low, high: None if fewer than :data:`LEAST` seeds, or episodes, say nothing about the spread.
        seeds: how many seeds went in.
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: int


def bootstrap_ratio(
    values_a: Sequence[float],
    values_b: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Geometric mean over seeds of a / b, such as steps to a target, with a paired percentile interval.

        r = exp(mean_i log(a_i / b_i)),    seeds i drawn with replacement, both arms of a seed together

    The geometric mean treats "twice as fast" and "half as fast" alike: swapping the arms gives 1 / r. With
    few seeds the interval is too narrow: read it as a spread (Efron and Tibshirani 1993, An Introduction to
    the Bootstrap, ch. 13). ``reach.ratio_to_target`` is for seeds that never reached their target.

    Raises:
        StatsError: no seeds, different numbers of them, or values that are not above zero.
    """
    check_pairs(len(values_a), len(values_b), "seeds")
    if any(not (isfinite(x) and x > 0) for x in (*values_a, *values_b)):
        raise StatsError(
            f"A ratio of steps needs steps above zero, got {list(values_a)} and {list(values_b)}."
        )
    logs = [log(a / b) for a, b in zip(values_a, values_b, strict=True)]
    mean, low, high = _bootstrap_mean(logs, confidence, resamples, seed)
    low, high = (None if x is None else exp(x) for x in (low, high))
    return Estimate(exp(mean), low, high, len(logs))


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

    One or two seeds have a value and no interval; see :func:`bootstrap_ratio` for what few seeds mean.

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
    """The mean and its percentile interval; no interval for fewer values than :data:`LEAST`."""
    check_confidence(confidence)
    if resamples < 1:
        raise StatsError(f"A bootstrap needs at least one resample, got {resamples}.")
    x_n = np.asarray(values, dtype=np.float64)
    if len(x_n) < LEAST:
        return float(x_n.mean()), None, None
    draws_Rn = np.random.default_rng(seed).integers(len(x_n), size=(resamples, len(x_n)))
    return float(x_n.mean()), *percentile_interval(x_n[draws_Rn].mean(1), confidence)


# ---- seeds and the episodes in each ------------------------------------------------------------------------


def bootstrap_rate(
    by_seed: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean over the episodes of all seeds, such as a success rate, with a two-level percentile interval.

    Seeds are drawn with replacement, then episodes with replacement within each seed drawn (Davison and
    Hinkley 1997, Bootstrap Methods and their Application, ch. 3.8), so that the interval tells what other
    seeds and other episodes would change. With one seed episodes alone are drawn.

    Args:
        by_seed: a value for each episode (0 or 1 for success), for each seed.

    Raises:
        StatsError: no seeds, a seed without episodes, or a value that is not finite.
    """
    totals_nK, means_RK = _two_levels([[(x,) for x in of] for of in by_seed], resamples, seed)
    return _estimate(totals_nK[:, 0].sum() / totals_nK[:, -1].sum(), means_RK[:, 0], by_seed, confidence)


def bootstrap_rate_difference(
    by_seed_a: Sequence[Sequence[float]],
    by_seed_b: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of b less mean of a over the episodes of all seeds; two levels as in :func:`bootstrap_rate`, both
    arms of an episode drawn together.

    Raises:
        StatsError: as there, or arms with different seeds or episodes.
    """
    pairs = _paired(by_seed_a, by_seed_b)
    return bootstrap_rate(
        [[b - a for a, b in of] for of in pairs], confidence=confidence, resamples=resamples, seed=seed
    )


def bootstrap_rate_ratio(
    by_seed_a: Sequence[Sequence[float]],
    by_seed_b: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of b over mean of a over the episodes of all seeds; drawn as in :func:`bootstrap_rate_difference`.

    It has no value where a is 0, and no interval if a is 0 in a resample.

    Raises:
        StatsError: as there.
    """
    pairs = _paired(by_seed_a, by_seed_b)
    totals_nK, means_RK = _two_levels(pairs, resamples, seed)
    a, b = totals_nK[:, 0].sum(), totals_nK[:, 1].sum()
    if a <= 0 or (means_RK[:, 0] <= 0).any():
        return Estimate(b / a if a > 0 else None, None, None, len(by_seed_a))
    return _estimate(b / a, means_RK[:, 1] / means_RK[:, 0], by_seed_a, confidence)


def _paired(
    by_seed_a: Sequence[Sequence[float]], by_seed_b: Sequence[Sequence[float]]
) -> list[list[tuple[float, float]]]:
    check_pairs(len(by_seed_a), len(by_seed_b), "seeds")
    for a, b in zip(by_seed_a, by_seed_b, strict=True):
        check_pairs(len(a), len(b), "episodes")
    return [
        [(float(x), float(y)) for x, y in zip(a, b, strict=True)]
        for a, b in zip(by_seed_a, by_seed_b, strict=True)
    ]


def _two_levels(
    by_seed: Sequence[Sequence[tuple[float, ...]]], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Totals of each seed, its number of episodes last (n, K + 1), and resampled means (R, K)."""
    if resamples < 1:
        raise StatsError(f"A bootstrap needs at least one resample, got {resamples}.")
    values = [np.asarray(of, np.float64) for of in by_seed]
    if not values or not all(len(x_mK) and np.isfinite(x_mK).all() for x_mK in values):
        raise StatsError(
            "A bootstrap over seeds and episodes needs finite values, at least one for each seed."
        )
    random, n = np.random.default_rng(seed), len(values)
    drawn_Rn = random.multinomial(n, np.full(n, 1 / n), size=resamples)
    sums_RK, counts_R = 0.0, np.zeros(resamples)
    for i, x_mK in enumerate(values):
        # A seed drawn c times has its m episodes drawn c times over: c · m draws.
        draws_R, m = drawn_Rn[:, i] * len(x_mK), len(x_mK)
        sums_RK = sums_RK + random.multinomial(draws_R, np.full(m, 1 / m)) @ x_mK
        counts_R += draws_R
    totals_nK = np.array([[*x_mK.sum(0), len(x_mK)] for x_mK in values])
    return totals_nK, sums_RK / counts_R[:, None]


def _estimate(
    value: float, draws_R: np.ndarray, by_seed: Sequence[Sequence[float]], confidence: float
) -> Estimate:
    low, high = percentile_interval(draws_R, confidence)
    spread = max(len(by_seed), *map(len, by_seed)) >= LEAST
    return Estimate(float(value), low if spread else None, high if spread else None, len(by_seed))


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
        means_RK, or None for fewer episodes than :data:`LEAST`, which say nothing about the spread.

    Raises:
        StatsError: no episodes, an episode without values, or totals that are not finite.
    """
    totals_nK, counts_n = np.asarray(totals_nK, np.float64), np.asarray(counts_n, np.float64)
    n = len(counts_n)
    if n == 0 or len(totals_nK) != n or not (counts_n > 0).all() or not np.isfinite(totals_nK).all():
        raise StatsError("Pooling over episodes needs finite totals and a number of values for each.")
    if n < LEAST:
        return None
    weights_Rn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return (weights_Rn @ totals_nK) / (weights_Rn @ counts_n)[:, None]


def percentile_interval(values_R: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a bootstrap distribution: its middle ``confidence``."""
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)
