"""The words of the probe's page and of its console tables."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from spatial_forcing.grid import identity
from spatial_forcing.probe.figures import reading_images
from spatial_forcing.probe.page import camera_names, write_page
from spatial_forcing.probe.records import ProbedHead, ProbeReport, SourceRow
from spatial_forcing.probe.run import Drawn
from spatial_forcing.probe.table import report_tables
from spatial_forcing.probe_results import DepthUsed, Difference

CAMERAS = ["observation.images.front", "observation.images.side"]


def report_of(episodes: int, *, intervals: bool, kind: str = "recorded") -> ProbeReport:
    span = {"absrel": [0.1, 0.3]} if intervals else None
    row = SourceRow(
        source="plain",
        site="blocks.1",
        head="linear",
        metrics={"absrel": 0.2},
        intervals=span,
        cells=5,
        differences={"mean depth": Difference(absrel=-0.1, low=-0.2 if intervals else None, high=0.0)},
        points_cm={"hand": 3.0},
    )
    return ProbeReport(
        created="today",
        command="spatial-forcing probe " + "--policies " * 40,
        versions={},
        hardware={},
        dataset="shapes",
        cameras=CAMERAS,
        depth=DepthUsed(name="x", kind=kind, unit="m", far=3.0),  # type: ignore[arg-type]
        policies=[ProbedHead(name="plain", type="act", checkpoint="a", sites=[], aligned_site="blocks.1")],
        train_episodes=[0],
        test_episodes=list(range(1, 1 + episodes)),
        train_frames=4,
        test_frames=6,
        settings={"seeds": [0]},
        rows=[row],
        notes=[],
        seconds=1.0,
    )


def page_of(report: ProbeReport, folder: Path) -> str:
    maps = torch.rand(2, 2, 2)
    frame = Drawn(
        episode=1,
        frame=0,
        images=[torch.rand(3, 12, 16) for _ in CAMERAS],
        depth_Vhw=maps,
        predicted_Vhw=maps,
        tokens_VHWC=torch.rand(2, 2, 2, 3),
        affine_V23=identity().expand(2, 2, 3),
        valid_VHW=torch.ones(2, 2, 2, dtype=torch.bool),
    )
    drawn = {"plain": [frame]}
    pictures = {path.stem: path for path in reading_images(drawn, folder, report.depth)}
    return write_page(report, drawn, pictures, folder / "probe.html").read_text()


def words(page: str) -> str:
    return re.sub(r"\s+", " ", page)


def tables_of(report: ProbeReport) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    for table in report_tables(report):
        console.print(table)
    return words(console.export_text())


@pytest.mark.parametrize(
    ("episodes", "said"),
    [(1, "1 held-out episode: no intervals"), (2, "2 held-out episodes: no intervals")],
)
def test_without_intervals_nothing_is_said_of_brackets(tmp_path, episodes, said):
    report = report_of(episodes, intervals=False)
    page, tables = words(page_of(report, tmp_path)), tables_of(report)
    assert said in page
    assert tables.count(said) == 3, "numbers, differences, positions"
    for text in (page, tables):
        assert "in brackets" not in text.lower()


def test_with_intervals_it_is_said_over_how_many_episodes(tmp_path):
    report = report_of(8, intervals=True)
    assert "In brackets 95 % over 8 held-out episodes." in words(page_of(report, tmp_path))
    assert tables_of(report).count("in brackets 95 % over 8 held-out episodes") == 3


def test_cameras_have_the_names_of_the_data_set(tmp_path):
    page = page_of(report_of(3, intervals=True), tmp_path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert data["cameras"] == ["front", "side"]
    assert "Test frames, camera front," in page
    assert camera_names(["left.rgb", "right.rgb"]) == ["left.rgb", "right.rgb"]


def test_depth_of_a_model_is_never_called_true(tmp_path):
    page = words(page_of(report_of(3, intervals=True, kind="pseudo"), tmp_path))
    assert "true depth" not in page
    assert "truth" not in page
    assert "no pseudo depth in range" in page
    assert "no true depth in range" in words(page_of(report_of(3, intervals=True), tmp_path))
