"""Bootstrap intervals: laws, coverage in simulations, and scipy's for the same draws."""

import math

import numpy as np
import pytest

from spatial_forcing.bootstrap import (
    Estimate,
    bootstrap_difference,
    bootstrap_rate,
    bootstrap_rate_difference,
    bootstrap_rate_ratio,
    bootstrap_ratio,
    percentile_interval,
    pooled_resamples,
)
from spatial_forcing.stats import StatsError

# ---- over seeds --------------------------------------------------------------------------------------------


def test_ratio_of_constant_speed_up_is_exact_and_inverts_with_the_arms():
    found = bootstrap_ratio([200, 400, 600], [100, 200, 300])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    one, other = (
        bootstrap_ratio([200, 300, 500], [100, 250, 480]),
        bootstrap_ratio([100, 250, 480], [200, 300, 500]),
    )
    assert (one.low, one.value, one.high) == pytest.approx(
        (1 / other.high, 1 / other.value, 1 / other.low), rel=1e-9
    )


def test_one_seed_has_a_value_but_no_interval():
    assert bootstrap_ratio([200], [100]).value == pytest.approx(2.0)
    assert (bootstrap_difference([1.0], [3.0]).value, bootstrap_difference([1.0], [3.0]).low) == (2.0, None)


def test_bootstrap_is_seeded_and_shifts_with_the_data():
    a, b = [0.3, 0.2, 0.5, 0.1], [0.4, 0.4, 0.45, 0.3]
    found = bootstrap_difference(a, b, seed=3)
    assert found == bootstrap_difference(a, b, seed=3)
    assert found.low <= found.value <= found.high
    moved = bootstrap_difference(a, [x + 1 for x in b], seed=3)
    assert (moved.low, moved.value, moved.high) == pytest.approx(
        (found.low + 1, found.value + 1, found.high + 1)
    )


def test_bootstrap_interval_covers_the_true_difference():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        a = rng.normal(size=20)
        found = bootstrap_difference(a, a + rng.normal(0.5, 1.0, size=20), resamples=500, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert 175 <= hits <= 198  # 95 % nominal; the percentile interval is a little narrow at 20


def test_bootstrap_refuses_unpaired_and_impossible_values():
    with pytest.raises(StatsError, match="3 and 2"):
        bootstrap_ratio([1, 2, 3], [1, 2])
    with pytest.raises(StatsError, match="above zero"):
        bootstrap_ratio([1, 0], [1, 2])
    with pytest.raises(StatsError, match="finite"):
        bootstrap_difference([math.nan], [1.0])
    with pytest.raises(StatsError, match="between 0 and 1"):
        bootstrap_difference([1.0, 2.0], [1.0, 2.0], confidence=95)


# ---- over seeds and episodes -------------------------------------------------------------------------------


def test_one_seed_draws_episodes_alone_and_one_episode_says_nothing():
    episodes = [1, 0, 0, 1, 1, 0, 1, 1, 0, 1] * 5
    found = bootstrap_rate([episodes], seed=1)
    assert found.value == 0.6
    # The spread of a mean of 50 coin flips at 0.6.
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.24 / 50), rel=0.1)
    assert (bootstrap_rate([[1]]).value, bootstrap_rate([[1]]).low) == (1.0, None)


def test_seeds_that_differ_widen_the_interval_beyond_that_of_episodes():
    alike = bootstrap_rate([[0, 1] * 25] * 3)
    apart = bootstrap_rate([[0] * 45 + [1] * 5, [0, 1] * 25, [1] * 45 + [0] * 5])
    assert alike.value == apart.value == 0.5
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_two_levels_are_the_slow_loop_over_seeds_and_episodes():
    by_seed = [[0, 1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1]]
    random, draws = np.random.default_rng(0), []
    for _ in range(4000):
        drawn = [by_seed[i] for i in random.integers(3, size=3)]
        draws.append(np.concatenate([random.choice(of, len(of)) for of in drawn]).mean())
    found = bootstrap_rate(by_seed)
    assert (found.low, found.high) == pytest.approx(percentile_interval(np.array(draws)), abs=0.02)


def test_both_arms_of_an_episode_are_drawn_together():
    a = [[0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 1, 0]]
    same = bootstrap_rate_difference(a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    double = bootstrap_rate_ratio(a, [[2 * x for x in of] for of in a])
    assert double.value == pytest.approx(2)
    assert (double.low, double.high) == (None, None)  # a is 0 in some resamples: the ratio has no interval
    many = [[0, 1] * 25] * 2
    ratio = bootstrap_rate_ratio(many, [[2 * x for x in of] for of in many])
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2, 2, 2))
    assert bootstrap_rate_ratio([[0, 0]], [[1, 1]]).value is None


def test_two_level_intervals_cover_the_true_rate_of_seeds_that_differ():
    random, hits = np.random.default_rng(0), 0
    for trial in range(120):
        rates = random.beta(5, 5, size=10)  # a rate for each of ten training seeds, 0.5 on average
        by_seed = [random.random(20) < rate for rate in rates]
        found = bootstrap_rate(by_seed, resamples=400, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert hits >= 106  # 95 % nominal, 114; ten seeds are few


@pytest.mark.parametrize("bad", [[], [[]], [[1.0], []], [[math.nan]]])
def test_episodes_that_say_nothing_are_refused(bad):
    with pytest.raises(StatsError, match="at least one for each seed"):
        bootstrap_rate(bad)


def test_arms_of_other_seeds_or_episodes_are_refused():
    with pytest.raises(StatsError, match="same seeds"):
        bootstrap_rate_difference([[1]], [[1], [0]])
    with pytest.raises(StatsError, match="same episodes"):
        bootstrap_rate_ratio([[1, 0]], [[1]])


# ---- pooled over episodes ----------------------------------------------------------------------------------


def test_pooled_resamples_are_scipys_bootstrap_of_a_ratio_of_sums():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    counts, means = rng.integers(5, 60, size=30), rng.normal(1.0, 0.3, size=30)
    found = percentile_interval(pooled_resamples((means * counts)[:, None], counts)[:, 0], 0.9)
    expected = bootstrap(
        (means * counts, counts),
        lambda totals, counts, axis: totals.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.005)


def test_arms_of_the_same_episodes_are_drawn_together():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 60, size=12)
    a = rng.normal(size=(12, 1)) * counts[:, None]
    b = a + 0.25 * counts[:, None]
    difference = pooled_resamples(b, counts) - pooled_resamples(a, counts)
    assert difference == pytest.approx(0.25)
    assert np.ptp(pooled_resamples(a, counts)) > 0.1


def test_pooled_intervals_cover_the_true_mean_of_frames_that_are_alike_in_an_episode():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        frames = rng.normal(size=(25, 1)) + 0.1 * rng.normal(size=(25, 40))
        draws = pooled_resamples(frames.sum(1, keepdims=True), np.full(25, 40), resamples=500, seed=trial)
        low, high = percentile_interval(draws[:, 0])
        hits += low <= 0 <= high
    assert 178 <= hits <= 198  # frames as if independent would give intervals a sixth as wide


def test_pooling_one_episode_says_nothing_and_none_is_an_error():
    assert pooled_resamples(np.ones((1, 2)), np.ones(1)) is None
    for totals, counts in (
        (np.ones((0, 1)), np.ones(0)),
        (np.ones((2, 1)), np.array([1, 0])),
        (np.full((2, 1), np.nan), np.ones(2)),
        (np.ones((3, 1)), np.ones(2)),
    ):
        with pytest.raises(StatsError, match="Pooling over episodes"):
            pooled_resamples(totals, counts)


def test_two_are_no_interval():
    """Resamples of two are these two and their mean, whatever the confidence."""
    assert bootstrap_difference([1.0, 2.0], [1.5, 2.25]) == Estimate(0.375, None, None, 2)
    assert bootstrap_difference([1.0, 2.0, 3.0], [1.5, 2.25, 3.0]).low is not None
    assert bootstrap_rate([[1.0], [0.0]]).low is None
    assert bootstrap_rate([[1.0, 0.0, 1.0]]).low is not None
    assert pooled_resamples(np.ones((2, 1)), np.ones(2)) is None
