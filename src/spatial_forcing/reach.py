"""Steps to a target and data to a target, with censoring: an arm that never reaches it gives a bound.

A curve is measured at a few steps, or after training on a few amounts of data, and is taken to be straight
between them. One that is never at the target within them needs more than the last of them; one that is there
at the first needs that much or less. Both are bounds, and so are ratios with one of them in it.

Letters: a the baseline, b the other arm, i seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isfinite, log
from typing import Literal, NamedTuple

from spatial_forcing.estimates import ratio_over_seeds
from spatial_forcing.stats import StatsError, check_pairs


class Curve(NamedTuple):
    """Learning curve: a value measured after some steps, or amounts of data; lower is better."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Reached:
    """Steps, or amount of data, until a curve reached a target; possibly a bound.

    Attributes:
        step: steps, or amount of data.
        sign: "=" between two measurements, or at one; ">" not there at ``step``, the last one; "<=" there at
            ``step``, the first one.
    """

    step: float
    sign: Literal["=", ">", "<="]

    @property
    def low(self) -> float:
        """Lower bound on the steps it took."""
        return 0 if self.sign == "<=" else self.step

    @property
    def high(self) -> float:
        """Upper bound on the steps it took; infinite if the target was never reached."""
        return inf if self.sign == ">" else self.step

    def __str__(self) -> str:
        return f"{self.step:.0f}" if self.sign == "=" else f"{self.sign} {self.step:.0f}"


@dataclass(frozen=True)
class Reach:
    """Steps, or amounts of data, that two curves needed to reach a target.

    Attributes:
        target: the value to reach.
        a, b: when each was at the target or below.
    """

    target: float
    a: Reached
    b: Reached

    @property
    def low(self) -> float:
        """Lower bound on the ratio a / b, how many times less b took; 0 is no bound."""
        return self.a.low / self.b.high

    @property
    def high(self) -> float:
        """Upper bound on the ratio a / b; infinity is no bound."""
        return inf if self.b.low == 0 else self.a.high / self.b.low


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over seeds of a / b, how many times less b took to the target.

    Attributes:
        value: None if a seed is a bound.
        low, high: t interval over seeds of the value; None without one, or with one seed.
        at_least, at_most: bounds of the value; None where there is none. Equal to the value if it is known.
        seeds, bounds: how many seeds, and in how many of them the ratio is a bound.
    """

    value: float | None
    low: float | None
    high: float | None
    at_least: float | None
    at_most: float | None
    seeds: int
    bounds: int

    def __str__(self) -> str:
        """Formats the ratio: 1.31 (1.10 to 1.58), < 1.30, > 2.00, 1.10 to 2.00, or unknown."""
        if self.value is not None:
            interval = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
            return f"{self.value:.2f}{interval}"
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least:.2f} and {self.at_most:.2f}"
        if self.at_least is not None:
            return f"> {self.at_least:.2f}"
        return "unknown" if self.at_most is None else f"< {self.at_most:.2f}"


def reached(curve: Curve, target: float) -> Reached:
    """The first step at which a curve, straight between its measurements, is at a target or below.

        step = s_0 + (s_1 - s_0) (v_0 - target) / (v_0 - v_1),    v_0 > target >= v_1

    Nothing is extrapolated beyond the measurements. With few of them this is rough: a curve may have been
    there at any step from s_0 to s_1.

    Raises:
        StatsError: the curve is empty, has a value that is not finite, or steps that do not increase; or the
            target is not finite.
    """
    steps, values = _checked(curve)
    if not isfinite(target):
        raise StatsError(f"The target must be a finite number, got {target}.")
    first = next((i for i, v in enumerate(values) if v <= target), None)
    if first is None:
        return Reached(steps[-1], ">")
    if first == 0:
        return Reached(steps[0], "<=")
    (s_0, s_1), (v_0, v_1) = steps[first - 1 : first + 1], values[first - 1 : first + 1]
    return Reached(s_0 + (s_1 - s_0) * (v_0 - target) / (v_0 - v_1), "=")


def steps_to_target(curve_a: Curve, curve_b: Curve, target: float | None = None) -> Reach:
    """Steps that two curves needed to reach a target: by default the last value of a, the baseline.

    The same rule holds for both curves: on a plateau the baseline may meet its own last value long before the
    end. With amounts of data in place of steps this is data-to-target.

    Raises:
        StatsError: as :func:`reached`.
    """
    target = float(_checked(curve_a).values[-1] if target is None else target)
    return Reach(target, reached(curve_a, target), reached(curve_b, target))


def ratio_to_target(reaches: Sequence[Reach]) -> Ratio:
    """Geometric mean over seeds of a's steps over b's, with bounds where a seed is censored.

        r = exp(mean_i log(a_i / b_i)),    low_i <= a_i / b_i <= high_i gives the same mean of the bounds

    Leaving a seed out that never got there would flatter the arm that failed, and so would its last step:
    with one, r is a bound and has no interval.

    Args:
        reaches: one for each seed.

    Raises:
        StatsError: no seeds, or steps of 0.
    """
    check_pairs(len(reaches), len(reaches), "seeds")
    if any(reach.a.step <= 0 or reach.b.step <= 0 for reach in reaches):
        raise StatsError("A ratio of steps needs steps above zero.")
    bounds = sum(reach.low != reach.high for reach in reaches)
    if bounds:
        low, high = (_geometric_mean([getattr(r, side) for r in reaches]) for side in ("low", "high"))
        at_least, at_most = low or None, high if isfinite(high) else None
        return Ratio(None, None, None, at_least, at_most, len(reaches), bounds)
    steps = [r.a.step for r in reaches], [r.b.step for r in reaches]
    found = ratio_over_seeds(*steps)
    return Ratio(found.value, found.low, found.high, found.value, found.value, len(reaches), 0)


def _geometric_mean(values: Sequence[float]) -> float:
    if 0 in values:
        return 0.0
    return exp(sum(log(v) for v in values) / len(values)) if all(map(isfinite, values)) else inf


def _checked(curve: Curve) -> Curve:
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
