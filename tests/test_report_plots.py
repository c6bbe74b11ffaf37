"""The report's plots: the colours of the arms and the running mean."""

import pytest

from spatial_forcing.report.plots import colours, running_mean


def test_colours_stay_with_the_arm_and_differ():
    names = ["forced", "baseline", "shuffled", "place", "blind", "state", "pixels", "weight 2", "oracle"]
    chosen = colours(names)
    assert len(set(chosen.values())) == len(names)
    assert colours(["baseline", "forced"])["forced"] == chosen["forced"]


def test_the_running_mean_keeps_constants_length_and_mean_of_ramps():
    assert running_mean([2.0] * 50) == pytest.approx([2.0] * 50)
    ramp = [float(i) for i in range(101)]
    smooth = running_mean(ramp)
    assert len(smooth) == 101
    assert smooth[10:-10] == pytest.approx(ramp[10:-10])
