"""Intervals and tests against published values, independent implementations, and the laws they must obey."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_forcing.bootstrap import (
    bootstrap_difference,
    bootstrap_ratio,
    percentile_interval,
    pooled_resamples,
)
from spatial_forcing.stats import Curve, StatsError, mcnemar, steps_to_target, wilson

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# ---- Wilson ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:857, Table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(successes, episodes, low, high):
    found = wilson(successes, episodes)
    assert (found.rate, found.successes, found.episodes) == (successes / episodes, successes, episodes)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(counts, st.floats(0.5, 0.99))
def test_wilson_is_the_formula_in_its_docstring(count, confidence):
    from scipy.stats import norm

    k, n = count
    z, p = norm.ppf((1 + confidence) / 2), k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(k, n, confidence)
    assert found.low == pytest.approx(centre - half, abs=1e-9)
    assert found.high == pytest.approx(centre + half, abs=1e-9)


@given(counts)
def test_wilson_is_symmetric_in_success_and_failure_and_holds_the_rate(count):
    k, n = count
    found, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


@given(st.integers(1, 100), st.floats(0.5, 0.98))
def test_wilson_narrows_with_episodes_and_widens_with_confidence(half, confidence):
    def width(found):
        return found.high - found.low

    assert width(wilson(2 * half, 4 * half)) < width(wilson(half, 2 * half))
    assert width(wilson(half, 2 * half, confidence)) < width(wilson(half, 2 * half, confidence + 0.01))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_wilson_covers_the_true_rate_about_as_often_as_it_says(p):
    from scipy.stats import binom

    n = 25
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert 0.90 < covered < 0.99


@pytest.mark.parametrize("bad", [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(bad):
    with pytest.raises(StatsError, match=f"{bad[0]} of {bad[1]}"):
        wilson(*bad)


# ---- McNemar -----------------------------------------------------------------------------------------------


def test_mcnemar_counts_and_gives_the_exact_binomial_tail():
    a = [True] * 2 + [False] * 12 + [True] + [False] * 10
    b = [True] * 2 + [True] * 12 + [False] + [False] * 10
    found = mcnemar(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 1, 12, 10)
    assert found.p_value == pytest.approx(2 * (1 + 13) / 2**13)
    assert found.difference == pytest.approx(14 / 25 - 3 / 25)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_mcnemar_agrees_with_statsmodels_and_is_symmetric(pairs):
    from statsmodels.stats.contingency_tables import mcnemar as reference

    a, b = zip(*pairs, strict=True)
    found, swapped = mcnemar(a, b), mcnemar(b, a)
    table = [[found.both, found.only_a], [found.only_b, found.neither]]
    assert sum(map(sum, table)) == found.episodes == len(pairs)
    assert found.p_value == pytest.approx(reference(table, exact=True).pvalue)
    assert swapped.p_value == pytest.approx(found.p_value)
    assert swapped.difference == -found.difference


@given(st.integers(0, 10), st.integers(1, 30))
def test_mcnemar_grows_more_certain_with_one_sided_evidence_and_ignores_agreement(agreed, wins):
    def p(n, agreed=0):
        return mcnemar([False] * n + [True] * agreed, [True] * (n + agreed)).p_value

    assert p(wins + 1) <= p(wins)
    assert p(wins, agreed) == p(wins)


def test_mcnemar_without_discordant_episodes_finds_nothing():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_mcnemar_refuses_what_is_not_paired():
    with pytest.raises(StatsError, match="3 and 2"):
        mcnemar([True] * 3, [True] * 2)
    with pytest.raises(StatsError, match=r"1 of 2 differ.*\('reach', 8\) against \('reach', 9\)"):
        mcnemar(
            [1, 0], [1, 1], a_episodes=[("reach", 7), ("reach", 8)], b_episodes=[("reach", 7), ("reach", 9)]
        )
    with pytest.raises(StatsError, match="both arms or of neither"):
        mcnemar([1, 0], [1, 1], a_episodes=[7, 8])


# ---- steps to target ---------------------------------------------------------------------------------------


def test_steps_to_target_is_the_first_step_at_the_baselines_last_value():
    found = steps_to_target(
        Curve([100, 200, 300, 400], [0.9, 0.8, 0.6, 0.5]), Curve([100, 200, 300], [0.7, 0.5, 0.6])
    )
    assert (found.target, found.steps_a, found.steps_b, found.ratio) == (0.5, 400, 200, 2.0)


def test_a_target_never_reached_is_none_and_has_no_ratio():
    found = steps_to_target(Curve([100, 200], [0.9, 0.5]), Curve([100, 200], [0.9, 0.51]))
    assert (found.steps_a, found.steps_b, found.ratio) == (200, None, None)


def test_a_plateau_is_judged_by_the_same_rule_for_both():
    found = steps_to_target(Curve([100, 200, 300], [0.2, 0.3, 0.3]), Curve([100, 200, 300], [0.4, 0.3, 0.2]))
    assert (found.steps_a, found.steps_b, found.ratio) == (100, 200, 0.5)


curves = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(
    lambda v: Curve([10 * (i + 1) for i in range(len(v))], v)
)


@given(curves, curves, st.floats(0, 1), st.floats(0, 1))
def test_easier_targets_are_reached_no_later_and_swapping_inverts(a, b, one, other):
    hard, easy = sorted([one, other])
    first, second = steps_to_target(a, b, easy), steps_to_target(a, b, hard)
    if second.steps_b is not None:
        assert first.steps_b is not None
        assert first.steps_b <= second.steps_b
    swapped = steps_to_target(b, a, easy)
    assert (swapped.steps_a, swapped.steps_b) == (first.steps_b, first.steps_a)
    assert (swapped.ratio is None) == (first.ratio is None)
    assert first.ratio is None or swapped.ratio == pytest.approx(1 / first.ratio)


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


# ---- bootstrap ---------------------------------------------------------------------------------------------


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


def test_a_seed_that_never_arrived_leaves_no_ratio():
    found = bootstrap_ratio([200, None, 300], [100, 100, None])
    assert (found.value, found.low, found.high, found.seeds, found.missing) == (None, None, None, 3, 2)


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
