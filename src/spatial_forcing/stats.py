"""Statistics of a comparison of policies: intervals of success rates, paired tests, multiple testing.

Two policies are compared on the *same* evaluation episodes, and several seeds share everything but the arm,
so all tests here are paired. Intervals over seeds are in ``estimates``. What cannot be computed is None.

Letters: n episodes, k successes, p̂ = k / n, z the normal quantile of the confidence level, a the baseline, b
the other arm.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral
from types import ModuleType

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError


class StatsError(SpatialForcingError, ValueError):
    """Invalid input of a statistic: different episodes, different lengths, or no data."""


# ---- success rates -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A success rate and its confidence interval, all in [0, 1]."""

    rate: float
    low: float
    high: float
    successes: int
    episodes: int


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927, JASA 22:209).

        centre = (p̂ + z²/2n) / (1 + z²/n),    half width = z / (1 + z²/n) · sqrt(p̂(1 - p̂)/n + z²/4n²)

    Unlike p̂ ± z·sqrt(p̂(1 - p̂)/n) it stays inside [0, 1], has width at 0 and n successes, and covers about
    as often as it says even for 20 episodes (Brown, Cai and DasGupta 2001, Stat. Sci. 16:101).

    Raises:
        StatsError: no episodes, more successes than episodes, or a confidence outside (0, 1).
    """
    whole = all(isinstance(count, Integral) for count in (successes, episodes))
    if not whole or episodes < 1 or not 0 <= successes <= episodes:
        raise StatsError(
            "A success rate needs whole numbers, 0 <= successes <= episodes, and an episode, got "
            f"{successes!r} of {episodes!r}."
        )
    check_confidence(confidence)
    found = scipy_stats().binomtest(int(successes), int(episodes)).proportion_ci(confidence, method="wilson")
    return Interval(successes / episodes, float(found.low), float(found.high), int(successes), int(episodes))


@dataclass(frozen=True)
class Paired:
    """Paired successes of two arms, a and b, on the same episodes.

    Attributes:
        both, only_a, only_b, neither: episodes by who succeeded; ``only_a`` and ``only_b`` are discordant.
        p_value: two-sided, of "an episode that only one arm solves is as likely to be a's as b's".
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float

    @property
    def episodes(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of b minus that of a, in [-1, 1]."""
        return (self.only_b - self.only_a) / self.episodes


def mcnemar(
    a_success: Sequence[bool],
    b_success: Sequence[bool],
    *,
    a_episodes: Sequence[Hashable] | None = None,
    b_episodes: Sequence[Hashable] | None = None,
) -> Paired:
    """McNemar's exact test (McNemar 1947, Psychometrika 12:153) of two arms on the same episodes.

    Under the null hypothesis ``only_b`` ~ Binomial(only_a + only_b, 1/2); the test is two-sided. Episodes
    that both arms solve, or neither, say nothing. Without discordant episodes the p-value is 1.

    Args:
        a_success, b_success: the arms' successes, episode by episode.
        a_episodes, b_episodes: what identifies each episode, such as (task, seed): give them to have the
            pairing checked.

    Raises:
        StatsError: no episodes, different numbers of them, or different episodes at the same place.
    """
    a, b = [bool(x) for x in a_success], [bool(x) for x in b_success]
    check_pairs(len(a), len(b), "episodes")
    _check_same_episodes(a_episodes, b_episodes, len(a))
    return mcnemar_over_seeds({0: dict(enumerate(zip(a, b, strict=True)))})


def mcnemar_over_seeds(pairs: Mapping[int, Mapping[Hashable, tuple[bool, bool]]]) -> Paired:
    """McNemar's exact test over several training seeds that may have run the same episodes.

    Under the null hypothesis the arms are exchangeable in every episode, in all seeds that ran it together:
    d_e, the sum over seeds of b's successes less a's in episode e, is as likely -d_e.

        p = P(|sum_e s_e d_e| >= |sum_e d_e|),    s_e = -1 or 1 with probability 1/2 each, all enumerated

    With one seed, and where no two seeds share an episode, that is McNemar's test. Adding up the tables of
    seeds that share episodes would take an episode that favours one arm for so many independent ones. The
    test is about these trained policies and other episodes; ``estimates`` has intervals for other seeds, too.

    Args:
        pairs: for each seed, by episode, the success of a and of b.

    Raises:
        StatsError: no seeds, or one without episodes.
    """
    if not pairs or not all(pairs.values()):
        raise StatsError("A test over seeds needs at least one, and an episode of each.")
    found = [(name, bool(a), bool(b)) for of in pairs.values() for name, (a, b) in of.items()]
    both = sum(a and b for _, a, b in found)
    only_a, only_b = (sum(one) - both for one in ((a for _, a, _ in found), (b for _, _, b in found)))
    sums: dict[Hashable, int] = {}
    for name, a, b in found:
        sums[name] = sums.get(name, 0) + b - a
    neither = len(found) - both - only_a - only_b
    return Paired(both, only_a, only_b, neither, _sign_flip_test(list(sums.values())))


def _sign_flip_test(differences: Sequence[int]) -> float:
    """Two-sided p-value of a sum of differences whose signs are flips of a coin: exact, by convolution."""
    steps = [abs(d) for d in differences if d]
    if not steps:
        return 1.0
    total, most = abs(sum(differences)), sum(steps)
    if most == len(steps):  # of one each: the sum is binomial
        return float(scipy_stats().binomtest((most + total) // 2, most, 0.5).pvalue)
    chance = np.ones(1)  # of each sum from -most to most, so far
    for d in steps:
        wider = np.zeros(len(chance) + 2 * d)
        wider[: len(chance)] += chance / 2
        wider[2 * d :] += chance / 2
        chance = wider
    return float(min(1.0, chance[np.abs(np.arange(-most, most + 1)) >= total].sum()))


# ---- several seeds, several arms ---------------------------------------------------------------------------


def paired_t_test(values_a: Sequence[float], values_b: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test over seeds, for a mean of b - a of zero.

    Returns:
        None for one seed, which has no spread, and for equal differences in all seeds (but for rounding).

    Raises:
        StatsError: no seeds, different numbers of them, or a value that is not finite.
    """
    check_pairs(len(values_a), len(values_b), "seeds")
    if not all(map(isfinite, [*values_a, *values_b])):
        raise StatsError(f"A paired test needs finite values, got {list(values_a)} and {list(values_b)}.")
    differences = [b - a for a, b in zip(values_a, values_b, strict=True)]
    if max(differences) - min(differences) <= 1e-12 * max(map(abs, [*values_a, *values_b])):
        return None
    return float(scipy_stats().ttest_rel(values_b, values_a).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for several tests (Holm 1979, Scand. J. Stat. 6:65), in the order given.

        p'_(i) = max_{j <= i} min(1, (m - j + 1) · p_(j)),    p_(1) <= ... <= p_(m)

    Rejecting where p' < alpha makes one false finding or more with probability alpha at most, however the
    tests depend on each other.

    Raises:
        StatsError: a p-value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise StatsError(f"P-values are between 0 and 1, got {list(p_values)}.")
    corrected, largest, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


# ---- checks ------------------------------------------------------------------------------------------------


def check_pairs(a: int, b: int, what: str) -> None:
    if a != b or a == 0:
        raise StatsError(
            f"A paired comparison needs the same {what} for both arms, at least one; got {a} and {b}."
        )


def _check_same_episodes(a: Sequence[Hashable] | None, b: Sequence[Hashable] | None, count: int) -> None:
    if a is None and b is None:
        return
    if a is None or b is None or len(a) != count or len(b) != count:
        found = [None if x is None else len(x) for x in (a, b)]
        raise StatsError(
            f"Name the episodes of both arms or of neither, {count} each; got {found[0]} and {found[1]}."
        )
    different = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if different:
        i, x, y = different[0]
        raise StatsError(
            f"The arms were not evaluated on the same episodes: {len(different)} of {count} differ, "
            f"the first at place {i}: {x!r} against {y!r}. Evaluate both with the same tasks "
            "and seeds, in the same order."
        )


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise StatsError(f"The confidence level must be between 0 and 1, got {confidence}.")


def scipy_stats() -> ModuleType:
    """``scipy.stats``, or an error that says how to get it."""
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingDependencyError("scipy", "report") from error
    return scipy.stats
