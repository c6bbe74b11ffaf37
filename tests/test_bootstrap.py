"""Bootstrap intervals of means pooled over episodes: laws, coverage in simulations, and scipy's."""

import numpy as np
import pytest

from spatial_forcing.bootstrap import percentile_interval, pooled_resamples
from spatial_forcing.stats import StatsError


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
    assert pooled_resamples(np.ones((2, 1)), np.ones(2)) is None
    assert pooled_resamples(np.ones((3, 1)), np.ones(3)) is not None
