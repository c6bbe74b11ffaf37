"""spatial-forcing probe on a small data set whose depth is known: from checkpoints to numbers and files."""

import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small_depth import painted_dataset, saved_tiny

from spatial_forcing.datasets import open_dataset
from spatial_forcing.probe import reading
from spatial_forcing.probe.command import probe
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.dpt import Recipe
from spatial_forcing.probe.policies import load_policies, named_policies
from spatial_forcing.probe.records import REFERENCES, ProbeReport, probe_at_aligned_sites, probe_section
from spatial_forcing.probe_options import ProbeOptions

QUICK = Recipe(steps=2, width=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return painted_dataset(tmp_path_factory.mktemp("painted") / "set", episodes=10, frames=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, dataset) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("policy") / "tiny", dataset)


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset, checkpoint) -> tuple[ProbeReport, Path]:
    out = tmp_path_factory.mktemp("out") / "probe"
    options = ProbeOptions(
        policies=(f"plain={checkpoint}", f"same={checkpoint}"),
        dataset=str(dataset),
        positions=("corners=observation.state:0,1,2",),
        suggest_site=True,
        max_frames=None,
        test_episodes=("1", "4", "6"),
        out=out,
    )
    return probe(options, Console(quiet=True)), out


def row(report: ProbeReport, source: str, site: str | None = None):
    return next(one for one in report.rows if one.source == source and site in (None, one.site))


def test_depth_that_tokens_hold_is_read_and_shuffled_tokens_hold_none(run):
    report, _ = run
    mean = row(report, "mean depth")
    assert row(report, "plain", "blocks.1").metrics["absrel"] < 0.15 * mean.metrics["absrel"]
    assert row(report, "raw pixels").metrics["absrel"] < 0.15 * mean.metrics["absrel"]
    difference = row(report, "shuffled tokens").differences["mean depth"]
    assert abs(difference.absrel) < 0.05 * mean.metrics["absrel"]


def test_every_site_is_there_with_every_reference_and_metric(run):
    report, _ = run
    assert [one.site for one in report.rows if one.source == "plain"] == ["blocks.1", "blocks.2", "blocks.3"]
    assert {one.source for one in report.references()} == {
        "mean depth",
        "raw pixels",
        "shuffled tokens",
        "untrained host",
    }
    for one in report.rows:
        assert set(one.intervals) == set(one.metrics)
        assert one.metrics["delta1"] <= one.metrics["delta2"] <= one.metrics["delta3"]


def test_equal_policies_have_equal_numbers_and_no_difference(run):
    report, _ = run
    for site in ("blocks.1", "blocks.3"):
        plain, same = row(report, "plain", site), row(report, "same", site)
        assert plain.metrics == same.metrics
        assert same.differences["plain"].absrel == 0.0


def test_positions_are_read_in_centimetres(run):
    report, _ = run
    mean, read = row(report, "mean depth"), row(report, "plain", "blocks.1")
    assert mean.points_cm["corners"] > 50
    assert read.points_cm["corners"] < 0.7 * mean.points_cm["corners"]


def test_no_frame_of_a_held_out_episode_is_fitted_on(run):
    report, _ = run
    assert not set(report.train_episodes) & set(report.test_episodes)
    assert (report.train_frames, report.test_frames) == (42, 18)


def test_what_is_written_says_the_same_and_can_be_drawn_from(run):
    report, out = run
    assert ProbeReport.read(out / "probe.json").plain() == report.plain()
    section = probe_section(report)
    assert [point.layer for point in section.stacks["blocks"]["plain"]] == [1, 2, 3]
    assert set(section.lines) == {"mean depth", "raw pixels", "shuffled tokens"}
    assert {path.name for path in out.iterdir()} == {
        *("probe.json", "probe.html", "layers.svg", "layers.png", "readings.png", "tokens.png")
    }


def test_what_a_comparison_reports_are_the_rows_at_the_aligned_site(run):
    report, _ = run
    probe = probe_at_aligned_sites(report, "probe/readings.png")
    assert [one.name for one in probe.rows if one.name in ("plain", "same")] == ["plain", "same"]
    aligned = row(report, "plain", report.policies[0].aligned_site)
    plain, same = probe.rows[:2]
    assert (plain.absrel, plain.rmse_m) == (aligned.metrics["absrel"], aligned.metrics["rmse"])
    assert plain.intervals["rmse_m"] == aligned.intervals["rmse"]
    assert same.differences["plain"].absrel == 0.0
    assert len(probe.rows) == 2 + 4, "two policies and the references"
    assert probe.depth.kind == "recorded"


def test_no_policy_has_the_name_of_a_reference():
    for name in REFERENCES:
        with pytest.raises(ProbeError, match="is taken"):
            named_policies([f"{name}=runs/a"])


def test_the_page_loads_nothing_and_is_small(run):
    _, out = run
    page = (out / "probe.html").read_text()
    assert len(page) < 5e6
    # Names of XML namespaces inside the SVG are no addresses that are loaded.
    loaded = re.findall(r'(?:src|href|xlink:href|url)\s*[=(]\s*["\']?([^"\'\s)>]+)', page)
    assert all(of.startswith(("data:", "#")) for of in loaded), loaded
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [policy["name"] for policy in data["policies"]] == ["plain", "same", "untrained host"]
    assert len(data["frames"]) == 4


def test_a_suggestion_ranks_all_sites_and_says_how_sure_it_is(run):
    suggestion = run[0].suggestion
    assert [one.absrel for one in suggestion.ranked] == sorted(one.absrel for one in suggestion.ranked)
    assert sum(one.best for one in suggestion.ranked) == pytest.approx(1.0)
    assert suggestion.verdict.startswith(suggestion.ranked[0].site)


def test_the_policy_is_what_it_was(dataset, checkpoint, tmp_path, monkeypatch):
    """Bit-equal weights and outputs, and no hooks left, after a probe that taps every site."""
    frames = open_dataset(dataset)
    (policy,) = load_policies({"plain": str(checkpoint)}, frames)
    monkeypatch.setattr("spatial_forcing.probe.command.load_policies", lambda *a, **k: [policy])
    batch = policy.prepared(torch.utils.data.default_collate([frames[0], frames[7]]))
    before = policy.module.predict_action_chunk(batch).clone()
    weights = {name: of.clone() for name, of in policy.module.state_dict().items()}
    options = ProbeOptions(
        policies=("plain=x",),
        dataset=str(dataset),
        heads=("linear", "dpt"),
        untrained=False,
        out=tmp_path / "o",
        seeds=(0,),
    )
    fit = reading.fit_dpt
    monkeypatch.setattr(reading, "fit_dpt", lambda sample, k, recipe, *how: fit(sample, k, QUICK, *how))
    probe(options, Console(quiet=True))
    assert torch.equal(before, policy.module.predict_action_chunk(batch))
    assert all(torch.equal(of, weights[name]) for name, of in policy.module.state_dict().items())
    assert not any(module._forward_pre_hooks for module in policy.module.modules())
