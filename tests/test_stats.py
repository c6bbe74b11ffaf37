"""Intervals and tests against published values, independent implementations, and the laws they must obey."""

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_forcing.stats import StatsError, holm, mcnemar, mcnemar_over_seeds, paired_t_test, wilson

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
def test_mcnemar_is_the_sign_test_of_discordant_pairs_and_symmetric(pairs):
    from scipy.stats import binomtest

    a, b = zip(*pairs, strict=True)
    found, swapped = mcnemar(a, b), mcnemar(b, a)
    counts = Counter(pairs)
    cells = found.both, found.only_a, found.only_b, found.neither
    assert cells == tuple(counts[x, y] for x, y in product((True, False), repeat=2))
    discordant = found.only_a + found.only_b
    expected = binomtest(found.only_a, discordant).pvalue if discordant else 1.0
    assert found.p_value == pytest.approx(expected)
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


# ---- several seeds, several arms ---------------------------------------------------------------------------


def over_seeds(rows, shared):
    """Pairs by seed; its episodes have the same names in all seeds, or names of their own."""
    return {
        seed: {e if shared else (seed, e): pair for e, pair in enumerate(row)}
        for seed, row in enumerate(rows)
    }


pairs_of_seeds = st.lists(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4), min_size=1, max_size=3
)


@given(pairs_of_seeds)
@settings(max_examples=40, deadline=None)
def test_over_seeds_the_signs_of_whole_episodes_flip(rows):
    """Counted out: every way to swap the arms of an episode, in all seeds that ran it."""
    found = mcnemar_over_seeds(over_seeds(rows, shared=True))
    sums = [sum(b - a for a, b in of) for of in zip(*rows, strict=True)]
    ways = [abs(sum(s * d for s, d in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=4)]
    assert found.p_value == pytest.approx(sum(way >= abs(sum(sums)) for way in ways) / len(ways))
    assert found.difference == pytest.approx(sum(sums) / (4 * len(rows)))


@given(pairs_of_seeds)
@settings(max_examples=40, deadline=None)
def test_seeds_with_episodes_of_their_own_are_one_mcnemars_test(rows):
    a, b = zip(*(pair for row in rows for pair in row), strict=True)
    assert mcnemar_over_seeds(over_seeds(rows, shared=False)) == mcnemar(a, b)


def test_the_same_rollouts_twice_are_no_more_evidence():
    row = [(False, True)] * 7 + [(True, False)] + [(True, True)] * 4
    once = mcnemar_over_seeds(over_seeds([row], shared=True))
    assert mcnemar_over_seeds(over_seeds([row] * 5, shared=True)).p_value == pytest.approx(once.p_value)
    assert mcnemar_over_seeds(over_seeds([row] * 5, shared=False)).p_value < once.p_value / 10
    with pytest.raises(StatsError, match="an episode of each"):
        mcnemar_over_seeds({})


def test_over_seeds_equal_arms_are_told_apart_no_more_often_than_it_says():
    """On episodes that favour one arm or the other in all seeds, where added-up tables reject too often."""
    random, rejected, added_up = np.random.default_rng(0), 0, 0
    for _ in range(300):
        favour = random.choice([-0.3, 0.0, 0.3], 25)
        draws = random.random((2, 3, 25)) < np.stack([0.5 - favour, 0.5 + favour])[:, None]
        rows = [list(zip(*of, strict=True)) for of in zip(*draws, strict=True)]
        rejected += mcnemar_over_seeds(over_seeds(rows, shared=True)).p_value < 0.05
        added_up += mcnemar_over_seeds(over_seeds(rows, shared=False)).p_value < 0.05
    assert rejected <= 24  # 15 nominal, two standard deviations above
    assert added_up > 24


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_holm_is_the_closed_test_of_bonferronis(p_values):
    # Marcus, Peritz & Gabriel 1976: a hypothesis falls if every intersection that it is part of does.
    m = range(len(p_values))
    sets = [some for n in m for some in combinations(m, n + 1)]
    fall = {some: min(1.0, len(some) * min(p_values[i] for i in some)) for some in sets}
    expected = [max(p for some, p in fall.items() if i in some) for i in m]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_gives_the_textbook_values_and_keeps_single_tests():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    with pytest.raises(StatsError, match="between 0 and 1"):
        holm([0.5, math.nan])


def test_the_paired_t_test_is_the_formula_and_says_nothing_of_one_seed():
    from scipy.stats import t

    a, b = [0.21, 0.25, 0.19, 0.22], [0.20, 0.22, 0.19, 0.20]
    d = np.subtract(b, a)
    statistic = d.mean() / (d.std(ddof=1) / 2)
    assert paired_t_test(a, b) == pytest.approx(2 * t.sf(abs(statistic), 3))
    assert paired_t_test([0.2], [0.1]) is None
    assert paired_t_test([0.25, 0.5], [0.25, 0.5]) is None
    assert paired_t_test([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]) is None  # equal, but for rounding
