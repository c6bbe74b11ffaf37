"""Power: against simulations and the known sample-size formula."""

import math

import numpy as np
import pytest

from spatial_forcing.estimates import rate_difference, two_way
from spatial_forcing.power import (
    detectable_difference,
    detectable_mean_difference,
    detectable_with,
    mcnemar_power,
    pairs_needed,
    seeds_needed,
    seeds_to_show,
)
from spatial_forcing.stats import StatsError, mcnemar


@pytest.mark.parametrize(("pairs", "difference", "discordant"), [(25, 0.4, 0.5), (60, 0.15, 0.2)])
def test_the_power_is_how_often_the_test_finds_the_difference(pairs, difference, discordant):
    random, found = np.random.default_rng(0), 0
    only_b, only_a = (discordant + difference) / 2, (discordant - difference) / 2
    for _ in range(400):
        draw = random.random(pairs)
        a, b = (draw >= only_b) & (draw < only_b + only_a), draw < only_b
        found += mcnemar(a, b).p_value < 0.05
    power = mcnemar_power(pairs, difference, discordant=discordant)
    assert found / 400 == pytest.approx(power, abs=3 * math.sqrt(power * (1 - power) / 400))


def test_without_a_difference_the_power_is_the_level_at_most():
    for pairs in (6, 25, 150):
        assert mcnemar_power(pairs, 0.0) <= 0.05
    assert mcnemar_power(0, 0.5) == 0


def test_the_detectable_difference_is_where_the_power_is_reached():
    found = detectable_difference(25, 2, discordant=0.3)
    assert mcnemar_power(50, found, discordant=0.3) == pytest.approx(0.8, abs=1e-3)
    assert detectable_difference(50) < detectable_difference(25)
    assert detectable_difference(25, 2) == detectable_difference(50)
    assert detectable_difference(50, discordant=0.2) < detectable_difference(50)
    assert detectable_difference(50, alpha=0.05 / 3) > detectable_difference(50)


def test_five_pairs_show_nothing_and_six_only_a_near_certain_difference():
    assert detectable_difference(5) is None  # 2 / 2^5 is above 0.05
    # All six must fall to b, which they do with probability d^6.
    assert detectable_difference(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-3)


def test_pairs_needed_is_the_usual_formula_and_the_exact_tests_price():
    d, psi = 0.1, 0.3
    z_alpha, z_power = 1.9600, 0.8416
    usual = (z_alpha * math.sqrt(psi) + z_power * math.sqrt(psi - d**2)) ** 2 / d**2  # Miettinen 1968
    found = pairs_needed(d, discordant=psi)
    assert usual < found < 1.15 * usual
    assert mcnemar_power(found, d, discordant=psi) >= 0.8
    assert pairs_needed(1e-5) is None


def test_the_mean_difference_is_detected_in_four_of_five_simulated_comparisons():
    from scipy.stats import ttest_1samp

    random = np.random.default_rng(0)
    for seeds in (2, 3, 10):
        differences = random.normal(detectable_mean_difference(seeds, 0.5), 0.5, (seeds, 20_000))
        found = (ttest_1samp(differences, 0.0).pvalue < 0.05).mean()
        assert found == pytest.approx(0.8, abs=0.0085)  # three standard deviations
    assert detectable_mean_difference(1) is None


def test_seeds_needed_inverts_the_detectable_difference():
    for seeds in (2, 3, 7, 20):
        least = detectable_mean_difference(seeds, 0.01)
        assert seeds_needed(1.001 * least, 0.01) == seeds
        assert seeds_needed(-0.999 * least, 0.01) == seeds + 1
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.1, 0.0) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: detectable_difference(-1),
        lambda: detectable_difference(5, discordant=1.5),
        lambda: detectable_difference(5, power=1),
        lambda: mcnemar_power(5, 2.0),
        lambda: detectable_mean_difference(3, math.nan),
        lambda: seeds_needed(math.inf, 1.0),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(StatsError):
        call()


def rows(random, S, E, difference, spread):
    """Two arms that differ, over seeds that vary, on the same episodes."""
    rates = np.clip(0.5 + np.array([0, difference])[:, None] + random.normal(0, spread, (2, S)), 0, 1)
    draws = random.random((2, S, E)) < rates[:, :, None]
    return [{s: dict(enumerate(map(float, draws[i, s]))) for s in range(S)} for i in (0, 1)]


def test_seeds_to_show_are_those_at_which_the_interval_excludes_zero_four_times_in_five():
    random = np.random.default_rng(0)
    V = rate_difference(*rows(random, 40, 40, 0.2, 0.1)).variance
    S = seeds_to_show(0.2, V, 40, 40)
    assert 3 <= S <= 20
    shown = sum(
        (found := rate_difference(*rows(random, S, 40, 0.2, 0.1))).low is not None and found.low > 0
        for _ in range(150)
    )
    assert shown / 150 > 0.65  # the interval is a little wider than it need be
    assert seeds_to_show(0.02, V, 40, 40) > 20 * S
    assert seeds_to_show(0.2, V, 40, 40, alpha=0.01) > S


def test_what_an_interval_detects_is_beyond_its_half_width():
    V = two_way({s: {e: float((s * e) % 3 - 1) / 10 for e in range(20)} for s in range(5)})
    from scipy.stats import t

    half = t.ppf(0.975, V.freedom) * math.sqrt(V.total)
    assert 1.2 * half < detectable_with(V) < 2 * half
    assert detectable_with(V, alpha=0.01) > detectable_with(V)
    wild = two_way({s: {e: float(s) for e in range(20)} for s in range(3)})
    assert detectable_with(wild) is None  # no rates differ by more than 1


def test_one_seed_tells_nothing_of_other_seeds():
    V = two_way({0: {0: 1.0, 1: 0.0, 2: 1.0}})
    assert seeds_to_show(0.5, V, 1, 3) is None
