"""Steps and data to a target: bounds where a target was never reached, or at once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatial_forcing.reach import Curve, Reach, Reached, ratio_to_target, reached, steps_to_target
from spatial_forcing.stats import StatsError


def test_steps_between_two_measurements_are_interpolated():
    """Else an arm that is there between two evaluations has the later one's steps, in every seed."""
    found = steps_to_target(Curve([300, 600], [0.4, 0.2]), Curve([300, 600], [0.3, 0.1]))
    assert found == Reach(0.2, Reached(600, "="), Reached(450, "="))
    fine = [50 * (i + 1) for i in range(12)]
    straight = steps_to_target(
        Curve(fine, [0.6 - s / 1500 for s in fine]), Curve(fine, [0.5 - s / 1500 for s in fine])
    )
    assert (straight.a.step, straight.b.step) == pytest.approx((found.a.step, found.b.step))


def test_steps_to_target_is_the_first_step_at_the_baselines_last_value():
    found = steps_to_target(
        Curve([100, 200, 300, 400], [0.9, 0.8, 0.6, 0.5]), Curve([100, 200, 300], [0.7, 0.5, 0.6])
    )
    assert found == Reach(0.5, Reached(400, "="), Reached(200, "="))
    assert (found.low, found.high) == (2, 2)


def test_a_target_never_reached_is_a_bound_and_so_is_its_ratio():
    found = steps_to_target(Curve([100, 200], [0.9, 0.5]), Curve([100, 200], [0.9, 0.51]))
    assert (str(found.a), str(found.b)) == ("200", "> 200")
    assert (found.low, found.high) == (0, 1)
    assert str(ratio_to_target([found])) == "< 1.00"


def test_a_plateau_is_judged_by_the_same_rule_for_both_and_the_first_step_is_a_bound():
    found = steps_to_target(Curve([100, 200, 300], [0.2, 0.3, 0.3]), Curve([100, 200, 300], [0.4, 0.3, 0.2]))
    assert (str(found.a), str(found.b)) == ("<= 100", "200")
    assert str(ratio_to_target([found])) == "< 0.50"


measured = st.integers(1, 5).map(lambda k: Reached(100 * k, "="))
ends = st.sampled_from([Reached(600, ">"), Reached(100, "<=")])
reaches = st.builds(Reach, st.just(0.5), measured | ends, measured | ends)


@given(st.lists(reaches, min_size=1, max_size=4))
def test_swapping_the_arms_inverts_ratio_and_bounds(seeds):
    one = ratio_to_target(seeds)
    other = ratio_to_target([Reach(r.target, r.b, r.a) for r in seeds])

    def inverse(x: float | None) -> float | None:
        return None if x is None else pytest.approx(1 / x)

    assert one.value == inverse(other.value)
    assert (one.at_least, one.at_most) == (inverse(other.at_most), inverse(other.at_least))
    assert one.bounds == other.bounds


@given(st.lists(reaches, min_size=1, max_size=4), st.lists(st.integers(1, 50), min_size=8, max_size=8))
def test_bounds_hold_whatever_a_censored_arm_would_have_taken(seeds, more):
    """Any true steps that fit what was seen give a ratio within the bounds."""

    def true(one: Reached, extra: int) -> float:
        return {"=": one.step, ">": one.step + 10 * extra, "<=": one.step / extra}[one.sign]

    logs = [math.log(true(r.a, more[2 * i]) / true(r.b, more[2 * i + 1])) for i, r in enumerate(seeds)]
    ratio, found = math.exp(sum(logs) / len(logs)), ratio_to_target(seeds)
    assert (found.at_least or 0) <= ratio * (1 + 1e-9)
    assert ratio <= (found.at_most or math.inf) * (1 + 1e-9)


def test_several_seeds_have_an_interval_as_long_as_none_is_a_bound():
    seeds = [Reach(0.5, Reached(a, "="), Reached(b, "=")) for a, b in ((400, 200), (600, 300), (400, 400))]
    found = ratio_to_target(seeds)
    assert found.value == pytest.approx(4 ** (1 / 3))
    logs = [math.log(2), math.log(2), 0.0]
    half = 4.302653 * math.sqrt(sum((x - sum(logs) / 3) ** 2 for x in logs) / 2 / 3)
    assert found.high == pytest.approx(math.exp(sum(logs) / 3 + half))
    assert found.low == pytest.approx(math.exp(sum(logs) / 3 - half))
    assert found.bounds == 0
    never = ratio_to_target([*seeds, Reach(0.5, Reached(800, ">"), Reached(400, "="))])
    assert (never.value, never.low, never.bounds) == (None, None, 1)
    assert str(never) == f"> {8 ** (1 / 4):.2f}"
    both = Reach(0.5, Reached(800, ">"), Reached(800, ">"))
    assert str(ratio_to_target([both])) == "unknown"


curves = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(
    lambda v: Curve([10 * (i + 1) for i in range(len(v))], v)
)


@given(curves, st.floats(0, 1), st.floats(0, 1))
def test_easier_targets_are_reached_no_later(curve, one, other):
    hard, easy = sorted([one, other])
    assert reached(curve, easy).high <= reached(curve, hard).high
    assert reached(curve, easy).low <= reached(curve, hard).low


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (Curve([], []), "at least one step"),
        (Curve([2, 1], [0.1, 0.2]), "increase"),
        (Curve([1], [math.nan]), "finite"),
    ],
)
def test_broken_curves_are_refused(curve, message):
    with pytest.raises(StatsError, match=message):
        steps_to_target(Curve([1], [1.0]), curve)
    with pytest.raises(StatsError, match="target must be"):
        reached(Curve([1], [1.0]), math.nan)
