"""Estimates over seeds and episodes: formulas, invariances, and how often their intervals cover."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatial_forcing.estimates import (
    Estimate,
    difference_over_seeds,
    rate,
    rate_difference,
    rate_ratio,
    ratio_over_seeds,
    two_way,
)
from spatial_forcing.stats import StatsError, wilson

T_2 = 4.302653  # the 97.5 % point of t with two degrees of freedom

tables = st.integers(1, 4).flatmap(
    lambda S: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6), min_size=S, max_size=S)
)


def table(rows, shared=True):
    """Seeds and their episodes, of the same names for all seeds or of their own."""
    return {s: {e if shared else (s, e): float(x) for e, x in enumerate(row)} for s, row in enumerate(rows)}


# ---- seeds -------------------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test():
    found = difference_over_seeds([1.0, 2.0, 3.0], [1.5, 2.25, 3.0])
    half = T_2 * 0.25 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert difference_over_seeds([1.0], [3.0]) == Estimate(2.0, None, None, 1)


def test_equal_values_tell_no_spread():
    found = difference_over_seeds([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert (found.value, found.low) == (pytest.approx(0.1), None)
    assert ratio_over_seeds([200, 400, 600], [100, 200, 300]).low is None


def test_a_ratio_is_a_geometric_mean_that_swapping_the_arms_inverts():
    one, other = ratio_over_seeds([200, 300, 500], [100, 250, 480]), None
    other = ratio_over_seeds([100, 250, 480], [200, 300, 500])
    assert one.value == pytest.approx((2 * 1.2 * 500 / 480) ** (1 / 3))
    assert (one.value, one.low, one.high) == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low))


def test_unpaired_and_impossible_values_are_refused():
    with pytest.raises(StatsError, match="got 3 and 2"):
        ratio_over_seeds([1, 2, 3], [1, 2])
    with pytest.raises(StatsError, match="above zero"):
        ratio_over_seeds([1, 0], [1, 2])
    with pytest.raises(StatsError, match="finite"):
        difference_over_seeds([math.nan], [1.0])
    with pytest.raises(StatsError, match="between 0 and 1"):
        difference_over_seeds([1.0, 2.0], [1.0, 2.5], confidence=95)


# ---- seeds and episodes ------------------------------------------------------------------------------------


def test_the_variance_is_that_of_seed_means_where_episodes_are_the_seeds_own():
    rows = [[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 1]]
    means = [np.mean(row) for row in rows]
    found = two_way(table(rows, shared=False))
    assert found.total == pytest.approx(np.var(means, ddof=1) / 3)
    assert found.episodes == 0


def test_the_variance_of_one_seed_is_that_of_its_episodes():
    row = [1, 1, 1, 0, 0, 1]
    found = two_way(table([row]))
    assert found.total == pytest.approx(np.var(row, ddof=1) / 6)
    assert (found.seeds, found.freedom) == (None, 5)


def test_the_variance_of_shared_episodes_is_the_sum_over_both_clusterings_less_that_of_cells():
    rows = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 0]], float)
    u = rows - rows.mean()
    V_S, V_E = rows.mean(1).var(ddof=1) / 3, rows.mean(0).var(ddof=1) / 5
    V = V_S + V_E - (u**2).sum() * 15 / 14 / 15**2
    found = two_way(table(rows))
    assert found.total == pytest.approx(max(V, V_S, V_E))
    assert found.freedom == pytest.approx(found.total**2 / (V_S**2 / 2 + V_E**2 / 4))


@given(tables, st.randoms())
def test_the_order_of_seeds_and_episodes_does_not_matter(rows, random):
    shuffled = [list(row) for row in rows]
    order = list(range(6))
    random.shuffle(order)
    random.shuffle(shuffled)
    shuffled = [[row[i] for i in order] for row in shuffled]
    assert two_way(table(shuffled)).total == pytest.approx(two_way(table(rows)).total)


def test_repeating_the_same_seed_adds_no_information():
    """As many copies of one seed's rollouts as one likes are still one set of episodes."""
    row = [0, 1, 1, 0, 1, 0, 0, 1]
    one, five = rate(table([row])), rate(table([row] * 5))
    assert five.high - five.low > 0.9 * (one.high - one.low)
    apart = rate(table([row] * 5, shared=False))
    assert apart.high - apart.low < 0.6 * (one.high - one.low)


def test_of_one_seed_a_rate_has_wilsons_interval():
    assert rate(table([[1, 0, 1, 1, 0]])) == wilson(3, 5)


def test_a_rate_of_none_or_all_has_an_interval_of_the_different_episodes():
    none, every = rate(table([[0] * 10] * 3)), rate(table([[1] * 10] * 3))
    assert (none.rate, none.low, every.rate, every.high) == (0, 0, 1, 1)
    assert none.high == wilson(0, 10).high
    assert every.low == pytest.approx(1 - none.high)


def test_a_difference_and_a_ratio_of_the_same_arms_agree():
    random = np.random.default_rng(0)
    a, b = (random.random((2, 4, 50)) < np.array([0.3, 0.6])[:, None, None]).astype(float)
    difference, ratio = rate_difference(table(a), table(b)), rate_ratio(table(a), table(b))
    assert difference.value == pytest.approx(b.mean() - a.mean())
    assert ratio.value == pytest.approx(b.mean() / a.mean())
    assert difference.low is not None
    assert ratio.low is not None
    assert (difference.low > 0) == (ratio.low > 1)
    swapped = rate_ratio(table(b), table(a))
    assert (swapped.low, swapped.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))


def test_arms_that_never_differ_tell_no_spread():
    rows = [[0, 1, 1], [1, 1, 0]]
    assert rate_difference(table(rows), table(rows)).low is None
    assert rate_ratio(table([[0, 0]]), table([[1, 1]])).value is None


def test_what_is_not_paired_is_refused():
    with pytest.raises(StatsError, match="the same seeds"):
        rate_difference(table([[1]]), table([[1], [0]]))
    with pytest.raises(StatsError, match="of seed 0 1 are of one alone"):
        rate_difference(table([[1, 0]]), table([[1]]))
    for bad in ({}, {0: {}}):
        with pytest.raises(StatsError, match="an episode of each"):
            rate(bad)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("S", [3, 5])
def test_intervals_cover_where_seeds_and_episodes_matter(S, shared):
    """Two equal arms whose seeds differ, on episodes that favour one arm or the other."""
    random, covered, trials, E = np.random.default_rng(S), 0, 200, 30
    for _ in range(trials):
        arms = []
        episode = random.normal(0, 1.5, (1 if shared else S, E))
        for _ in range(2):
            logits = episode + random.normal(0, 1.0, episode.shape) + random.normal(0, 0.5, (S, 1))
            arms.append((random.random((S, E)) < 1 / (1 + np.exp(-logits))).astype(float))
        found = rate_difference(*(table(arm, shared) for arm in arms))
        covered += found.low is None or found.low <= 0 <= found.high
    assert covered / trials > 0.91  # 0.95 less three standard deviations
