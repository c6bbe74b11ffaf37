"""Statistical power: the smallest detectable difference of a comparison, and the sample size for one.

Of success rates by McNemar's exact test on paired episodes, or by the interval over seeds and episodes once
their variance is known; and of a mean over seeds by the paired t-test.

Letters: n pairs of episodes, ψ the share of them that only one arm solves (discordant), d the difference of
success rates, D the number of discordant pairs, S seeds, E episodes, V variances, alpha the two-sided level.
"""

from bisect import bisect_left
from functools import cache
from math import isfinite, sqrt

import numpy as np

from spatial_forcing.estimates import Variance
from spatial_forcing.stats import StatsError, check_confidence, scipy_stats

# Two policies that have nothing in common and succeed half of the time differ on every second episode.
# Policies of one comparison usually agree more often than that, which shows smaller differences.
UNRELATED = 0.5
POWER, ALPHA = 0.8, 0.05
MOST_PAIRS, MOST_SEEDS = 1_000_000, 1_000


def mcnemar_power(
    pairs: int, difference: float, *, discordant: float = UNRELATED, alpha: float = ALPHA
) -> float:
    """Power of McNemar's exact test to detect a difference of success rates.

        D ~ Binomial(n, ψ),  b's share of D ~ Binomial(D, (1 + d/ψ) / 2),  ψ = max(discordant, d)

    Args:
        pairs: n, episodes that both arms ran, over all seeds.
        difference: d, in [0, 1].
        discordant: ψ, the share of episodes that only one arm solves; it is at least d.
        alpha: two-sided level.

    Raises:
        StatsError: a number outside its range.
    """
    _check(pairs, discordant, POWER, alpha)
    if not 0 <= difference <= 1:
        raise StatsError(f"A difference of success rates is between 0 and 1, got {difference}.")
    psi = max(discordant, difference)
    if pairs == 0 or psi == 0:
        return 0.0
    binom = scipy_stats().binom
    # Fewer or more discordant pairs than these come once in 10^10 times.
    D = np.arange(binom.ppf(1e-10, pairs, psi), binom.ppf(1 - 1e-10, pairs, psi) + 1)
    # The test rejects where the smaller count is at most c: P(X <= c) <= alpha / 2 for X ~ Binomial(D, 1/2).
    c = binom.ppf(alpha / 2, D, 0.5)
    c -= binom.cdf(c, D, 0.5) > alpha / 2
    share = (1 + difference / psi) / 2
    rejects = binom.cdf(c, D, share) + binom.sf(D - c - 1, D, share)
    return float((binom.pmf(D, pairs, psi) * np.where(c < 0, 0.0, rejects)).sum())


def detectable_difference(
    episodes: int,
    seeds: int = 1,
    *,
    discordant: float = UNRELATED,
    power: float = POWER,
    alpha: float = ALPHA,
) -> float | None:
    """Smallest difference of success rates that McNemar's test detects with these paired episodes and seeds.

    The test is McNemar's exact one over the pairs of all seeds, as if no two seeds ran the same episodes: a
    lower limit before anything is measured. Afterwards :func:`detectable_with` knows how much seeds and
    episodes vary.

    Args:
        episodes: of one evaluation, the same for both arms.
        seeds: training seeds, each evaluated so.
        discordant: the share of episodes that only one arm solves. The default is the most that policies
            with equal success show by chance: unrelated, at a success rate of one half. An observed share
            gives a smaller difference.
        power: how likely the difference is found.
        alpha: two-sided level; divide it by the number of arms for the worst that Holm's correction does.

    Returns:
        A difference in (0, 1], or None if no difference would do: fewer than 6 pairs at alpha 0.05.

    Raises:
        StatsError: a number outside its range.
    """
    pairs = episodes * seeds
    _check(pairs, discordant, power, alpha)
    if mcnemar_power(pairs, 1.0, discordant=discordant, alpha=alpha) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = mcnemar_power(pairs, middle, discordant=discordant, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def pairs_needed(
    difference: float, *, discordant: float = UNRELATED, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Approximate number of paired episodes, over all seeds, that detects a difference of success rates.

    The power of an exact test goes up in a saw-tooth; this is where it first passes, found by bisection.

    Returns:
        None for more than a million.

    Raises:
        StatsError: a number outside its range.
    """
    _check(1, discordant, power, alpha)

    def enough(n: int) -> bool:
        return mcnemar_power(n, difference, discordant=discordant, alpha=alpha) >= power

    high = 8
    while not enough(high):
        high *= 2
        if high > MOST_PAIRS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def detectable_with(variance: Variance, *, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Smallest difference of rates that an interval over seeds and episodes of this variance shows.

    Returns:
        None if that is above 1, which no difference of rates is.

    Raises:
        StatsError: a number outside its range.
    """
    _check(0, UNRELATED, power, alpha)
    least = sqrt(variance.total) * _least_noncentrality(variance.freedom, power, alpha)
    return least if least <= 1 else None


def seeds_to_show(
    difference: float,
    variance: Variance,
    seeds: int,
    episodes: int,
    *,
    power: float = POWER,
    alpha: float = ALPHA,
) -> int | None:
    """Number of seeds, on as many episodes, with which an interval tells a difference from zero.

        V(S') = V_seeds · S / S' + V_episodes

    Args:
        difference: of the means.
        variance: measured with ``seeds`` seeds on ``episodes`` different episodes.
        seeds, episodes: those numbers.

    Returns:
        None for one seed, whose variance says nothing of others; and for more than a thousand: then other
        episodes vary more than that, and more of them are needed.

    Raises:
        StatsError: a number outside its range.
    """
    _check(seeds, UNRELATED, power, alpha)
    if variance.seeds is None or difference == 0:
        return None
    of_one = variance.seeds * seeds

    def reached(S: int) -> float:
        V = of_one / S + variance.episodes
        spread = (of_one / S) ** 2 / (S - 1) + variance.episodes**2 / max(episodes - 1, 1)
        if V == 0:
            return 1.0
        return _t_power(V**2 / spread, abs(difference) / sqrt(V), alpha)

    if reached(MOST_SEEDS) < power:
        return None
    return 2 + bisect_left(range(2, MOST_SEEDS + 1), power, key=reached)


def detectable_mean_difference(
    seeds: int, spread: float = 1.0, *, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Smallest mean difference over seeds, such as of held-out errors, that the paired t-test detects.

    Under a true difference δ the test's t has the noncentral t distribution with noncentrality
    sqrt(seeds) · δ / spread.

    Args:
        seeds: training seeds.
        spread: standard deviation over seeds of the paired difference; the result is in its unit.

    Returns:
        None for one seed, which has no spread.

    Raises:
        StatsError: a number outside its range.
    """
    _check(seeds, UNRELATED, power, alpha)
    if not (isfinite(spread) and spread >= 0):
        raise StatsError(f"The spread over seeds must be finite and at least 0, got {spread}.")
    if seeds < 2:
        return None
    return spread / sqrt(seeds) * _least_noncentrality(seeds - 1, power, alpha)


def seeds_needed(
    difference: float, spread: float, *, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Number of seeds with which the paired t-test detects a mean difference.

    Returns:
        None for a difference of 0, and for more than a thousand.

    Raises:
        StatsError: a number outside its range.
    """
    if not isfinite(difference):
        raise StatsError(f"A mean difference must be finite, got {difference}.")
    _check(1, UNRELATED, power, alpha)
    if spread == 0 or difference == 0:
        return 2 if difference else None
    effect = abs(difference) / spread

    def reached(seeds: int) -> float:
        return _t_power(seeds - 1, sqrt(seeds) * effect, alpha)

    if reached(MOST_SEEDS) < power:
        return None
    return 2 + bisect_left(range(2, MOST_SEEDS + 1), power, key=reached)


@cache  # a report asks for the same of every pair of arms
def _least_noncentrality(freedom: float, power: float, alpha: float) -> float:
    low, high = 0.0, 1.0
    while _t_power(freedom, high, alpha) < power:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _t_power(freedom, middle, alpha) >= power else (middle, high)
    return high


def _t_power(freedom: float, noncentrality: float, alpha: float) -> float:
    """Power of a two-sided t-test at a difference of so many standard errors."""
    stats = scipy_stats()
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    given = freedom, noncentrality
    # Far out scipy gives NaN for the tail on the other side, which is as good as empty there.
    return float(stats.nct.sf(critical, *given) + np.nan_to_num(stats.nct.cdf(-critical, *given)))


def _check(count: int, discordant: float, power: float, alpha: float) -> None:
    if count < 0:
        raise StatsError(f"The number of episodes and seeds must be at least 0, got {count}.")
    if not 0 <= discordant <= 1:
        raise StatsError(f"The share of discordant episodes must be between 0 and 1, got {discordant}.")
    check_confidence(power)
    check_confidence(alpha)
