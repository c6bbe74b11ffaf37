"""The report's plots: the colours of the arms and the running mean."""

from types import SimpleNamespace

import pytest
from small_results import report

from spatial_forcing.report.plots import BANDS, colours, draw_logged, running_mean


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


@pytest.mark.parametrize(("count", "bands"), [(BANDS, BANDS), (BANDS + 1, 0)])
def test_bands_of_seeds_are_left_out_where_they_would_hide_the_lines(count, bands):
    arms = {f"arm{i}": SimpleNamespace(role="arm", steps=2) for i in range(count)}
    series = {arm: {seed: [(1, 0.5 + seed), (2, 0.2 + seed)] for seed in (0, 1)} for arm in arms}
    assert draw_logged(arms, "cosine", series).count("FillBetweenPolyCollection") == bands


def test_the_probe_is_drawn_at_every_site_in_the_colours_of_the_arms(results, tmp_path):
    _, record = report(results, tmp_path)
    drawn = (tmp_path / "figures" / "probe_sites.svg").read_text().lower()
    for name, colour in colours(["baseline", "forced"]).items():
        assert colour.lower() in drawn, name
    assert len(record["plots"]["probe_sites"]["stacks"]["blocks"]["forced"]) == 2
    rows = (tmp_path / "tables" / "probe_sites.csv").read_text().splitlines()
    assert rows[0] == "tokens_of,site,absrel,absrel_low,absrel_high"
    assert rows[1].startswith("baseline,blocks.1,0.16")


def test_pseudo_depth_is_called_so_wherever_a_number_stands(results, tmp_path):
    page, _ = report(results, tmp_path)
    assert "pseudo" not in page.text.lower()
    depth = {"name": "pseudo: vggt-1b", "kind": "pseudo", "unit": "median depth of the image", "far": 3.0}
    results["probe"]["depth"] = results["probe_sites"]["depth"] = depth
    page, _ = report(results, tmp_path)
    assert "Pseudo depth." in page.text
    assert "AbsRel (pseudo)" in page.text
    assert "RMSE (medians)" in page.text
    drawn = (tmp_path / "figures" / "probe_sites.svg").read_text()
    assert "AbsRel, pseudo: vggt-1b" in drawn
