"""A suggestion of a site is as sure as the episodes allow."""

import numpy as np
import pytest

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.quality import METRICS, Tallies
from spatial_forcing.probe.suggest import ranked_sites


def tallies(absrel: float, spread: float = 0.01, seed: int = 0, episodes: int = 20) -> Tallies:
    """100 cells in each episode, of this AbsRel with this deviation between episodes."""
    values = absrel + spread * np.random.default_rng(seed).normal(size=episodes)
    totals = np.tile(100 * values[:, None], (1, len(METRICS)))
    return Tallies(totals, np.full(episodes, 100.0), np.full(episodes, 100.0))


def test_a_site_that_is_better_in_every_episode_is_sure():
    found = ranked_sites("base", {"blocks.1": tallies(0.2), "blocks.2": tallies(0.1)}, "blocks.2")
    assert [one.site for one in found.ranked] == ["blocks.2", "blocks.1"]
    assert found.ranked[0].best == 1.0
    assert found.ranked[0].mean_rank == 1.0
    assert "the site with the most depth" in found.verdict
    assert "host's record recommends" in found.verdict


def test_sites_that_differ_by_chance_are_not_sure():
    sites = {f"blocks.{i}": tallies(0.1, seed=i) for i in range(4)}
    found = ranked_sites("base", sites, "blocks.0")
    assert found.ranked[0].best < 0.95
    assert "does not settle it" in found.verdict
    assert sum(one.best for one in found.ranked) == pytest.approx(1.0)


def test_paired_differences_count_and_not_overlapping_intervals():
    """Episodes differ by much more than sites do, but one site is better in each of them."""
    a, b = tallies(0.1, spread=0.05), tallies(0.1, spread=0.05)
    b = Tallies(b.totals_nK * 0.97, b.cells_n, b.pairs_n)
    found = ranked_sites("base", {"blocks.1": a, "blocks.2": b}, "blocks.1")
    assert found.ranked[0].site == "blocks.2"
    assert found.ranked[0].best == 1.0
    assert found.ranked[0].high > found.ranked[1].low
    assert "The recommended blocks.1" in found.verdict


def test_one_episode_and_one_site_say_nothing():
    one = {name: tallies(value, episodes=1) for name, value in (("blocks.1", 0.1), ("blocks.2", 0.2))}
    assert ranked_sites("base", one, "blocks.1").verdict.endswith("not sure.")
    with pytest.raises(ProbeError, match="at least two sites"):
        ranked_sites("base", {"blocks.1": tallies(0.1)}, "blocks.1")
