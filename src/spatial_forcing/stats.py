"""Statistics of a comparison of policies: intervals of success rates, paired tests, steps to a target.

Two policies are compared on the *same* evaluation episodes, and several seeds share everything but the arm,
so all tests here and in ``bootstrap`` are paired. What cannot be computed is None: a target that was never
reached has no step.

Letters: n episodes, k successes, p̂ = k / n, z the normal quantile of the confidence level, a the baseline, b
the other arm.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from numbers import Integral
from types import ModuleType
from typing import NamedTuple

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError


class StatsError(SpatialForcingError, ValueError):
    """Numbers that cannot be compared: of different episodes, different lengths, or none at all."""


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
    found = _scipy_stats().binomtest(int(successes), int(episodes)).proportion_ci(confidence, method="wilson")
    return Interval(successes / episodes, float(found.low), float(found.high), int(successes), int(episodes))


@dataclass(frozen=True)
class Paired:
    """How two arms, a and b, did on the same episodes.

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
    """McNemar's exact test (McNemar 1947, Psychometrika 12:153): do two arms differ on the same episodes?

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
    both = sum(x and y for x, y in zip(a, b, strict=True))
    only_a, only_b = sum(a) - both, sum(b) - both
    discordant = only_a + only_b
    p_value = float(_scipy_stats().binomtest(only_b, discordant, 0.5).pvalue) if discordant else 1.0
    return Paired(both, only_a, only_b, len(a) - both - discordant, p_value)


# ---- steps to a target -------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A value measured at some training steps; lower is better."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Reach:
    """When two curves reached a target.

    Attributes:
        target: the value to reach.
        steps_a, steps_b: the first measured step at which each was at the target or below, None if never.
        ratio: steps_a / steps_b, how many times fewer steps b needed; None unless both reached the target
            after step 0.
    """

    target: float
    steps_a: int | None
    steps_b: int | None
    ratio: float | None


def steps_to_target(curve_a: Curve, curve_b: Curve, target: float | None = None) -> Reach:
    """The first step at which each curve reaches a target: by default the last value of a, the baseline.

    Only measured points count: nothing is interpolated between them or extrapolated beyond, so a step is late
    by up to the distance between two measurements. The same rule holds for both curves: on a plateau the
    baseline may meet its own last value long before the end. A curve that never reaches the target gives
    None, not its last step.

    Raises:
        StatsError: a curve is empty, has a value that is not finite, or steps that do not increase; or the
            target is not finite.
    """
    a, b = _checked_curve(curve_a), _checked_curve(curve_b)
    target = float(a.values[-1] if target is None else target)
    if not isfinite(target):
        raise StatsError(f"The target must be a finite number, got {target}.")
    steps_a, steps_b = _first_at_or_below(a, target), _first_at_or_below(b, target)
    ratio = steps_a / steps_b if steps_a and steps_b else None
    return Reach(target, steps_a, steps_b, ratio)


# ---- checks ------------------------------------------------------------------------------------------------


def _first_at_or_below(curve: Curve, target: float) -> int | None:
    return next((int(s) for s, v in zip(curve.steps, curve.values, strict=True) if v <= target), None)


def _checked_curve(curve: Curve) -> Curve:
    steps, values = curve
    if not len(steps) or len(steps) != len(values):
        raise StatsError(
            f"A curve needs at least one step and a value for each, got {len(steps)} and {len(values)}."
        )
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise StatsError(f"The steps of a curve must increase, got {list(steps)}.")
    if not all(isfinite(v) for v in values):
        raise StatsError(f"The values of a curve must be finite, got {list(values)}.")
    return Curve(steps, values)


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


def _scipy_stats() -> ModuleType:
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingDependencyError("scipy", "report") from error
    return scipy.stats
