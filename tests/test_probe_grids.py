"""Policies on different grids in one probe: what is compared with what."""

import numpy as np

from spatial_forcing.probe.assemble import rows_of
from spatial_forcing.probe.quality import METRICS, Tallies
from spatial_forcing.probe.records import MEAN, UNTRAINED
from spatial_forcing.probe.run import PolicyNumbers, SourceNumbers


def read(absrel: float) -> SourceNumbers:
    """What a linear head read: the same error in each of three episodes of ten cells."""
    totals_nK = np.full((3, len(METRICS)), 10 * absrel)
    return SourceNumbers(linear=Tallies(totals_nK, np.full(3, 10.0), np.zeros(3)))


def test_differences_are_to_the_mean_depth_and_the_first_policy_of_the_same_grid():
    """Different places, even where there are as many cells."""
    numbers = {
        "a": PolicyNumbers(("fine",), {"x": read(0.20)}, {MEAN: read(0.30)}),
        "b": PolicyNumbers(("coarse",), {"x": read(0.10)}, {MEAN: read(0.25)}),
        UNTRAINED: PolicyNumbers(("fine",), {"x": read(0.22)}),
    }
    rows = {row.source: row for row in rows_of(numbers, [], {}) if row.source != MEAN}
    found = {
        name: {other: round(of.absrel, 9) for other, of in row.differences.items()}
        for name, row in rows.items()
    }
    assert found == {
        "a": {MEAN: -0.10},
        "b": {MEAN: -0.15},
        UNTRAINED: {MEAN: -0.08, "a": 0.02},
    }
