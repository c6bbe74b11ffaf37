"""Bootstrap intervals of means that are pooled over episodes, such as the depth probe's errors.

What cannot be computed is None. Intervals over training seeds are in ``estimates``.

Letters: n episodes, R resamples, K quantities.
"""

import numpy as np

from spatial_forcing.stats import StatsError, check_confidence

# Percentiles of a bootstrap distribution settle in the second digit with this many draws.
RESAMPLES = 10_000
# Resamples of fewer episodes are those themselves and their mean, which is no interval.
LEAST = 3


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
