"""The pictures of the probe's page show every cell where it lies in the image, whatever the host's grid.

Shapes: V views, H W rows and columns of tokens or pixels, h w cells of a depth map, K of them a side of a
token, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spatial_forcing.grid import Layout, compose, crop, flip, identity
from spatial_forcing.probe import VisualTokens
from spatial_forcing.probe import figures as figures_module
from spatial_forcing.probe import image as image_module
from spatial_forcing.probe.figures import principal_colours, reading_images, token_colours
from spatial_forcing.probe.image import FINE, in_image
from spatial_forcing.probe.page import similarity_data
from spatial_forcing.probe.run import Drawn
from spatial_forcing.probe_results import DepthUsed

HIGH, WIDE = 48, 64
TIMES = FINE // WIDE  # pixels of a map in the image's frame for one of the image
K = 2
RECORDED = DepthUsed(name="recorded", kind="recorded", unit="m", far=3.0)
PSEUDO = DepthUsed(name="pseudo: x", kind="pseudo", unit="median depth of the image", far=3.0)


@dataclass(frozen=True)
class Case:
    """A grid, and the lines between its cells in pixels of the image, in the grid's order."""

    layout: Layout
    columns: Sequence[float]
    rows: Sequence[float]
    camera: Tensor | None = None


CASES = {
    "whole": Case(Layout(1, 3, 4), (0, 16, 32, 48, 64), (0, 16, 32, 48)),
    "shifted": Case(Layout(1, 3, 4, offset=-0.5), (-8, 8, 24, 40, 56), (-8, 8, 24, 40)),
    "padded": Case(Layout(1, 4, 4, "pad"), (0, 16, 32, 48, 64), (-8, 8, 24, 40, 56)),
    "padded above": Case(Layout(1, 4, 4, "pad", (1, 1)), (0, 16, 32, 48, 64), (-16, 0, 16, 32, 48)),
    "mirrored": Case(Layout(1, 3, 4), (64, 48, 32, 16, 0), (0, 16, 32, 48), flip()),
    "mirrored and shifted": Case(Layout(1, 3, 4, offset=-0.5), (72, 56, 40, 24, 8), (-8, 8, 24, 40), flip()),
    "cropped": Case(Layout(1, 3, 4), (16, 24, 32, 40, 48), (12, 20, 28, 36), crop(0.25, 0.25, 0.75, 0.75)),
    "overhanging": Case(Layout(1, 3, 4, overhang=(1.125, 1.125)), (0, 18, 36, 54, 72), (0, 18, 36, 54)),
    "of convolutions": Case(  # ACT's: of stride 18
        Layout(1, 3, 4, overhang=(1.125, 1.125), offset=-17 / 36),
        (-8.5, 9.5, 27.5, 45.5, 63.5),
        (-8.5, 9.5, 27.5, 45.5),
    ),
}


@pytest.fixture(params=list(CASES))
def case(request) -> Case:
    return CASES[request.param]


def painted(values_HWC: Tensor, columns: Sequence[float], rows: Sequence[float], filling: float) -> Tensor:
    """Values of cells, painted between lines on pixels of an image, ``TIMES`` as many."""
    found = torch.full((TIMES * HIGH, TIMES * WIDE, values_HWC.shape[-1]), filling)
    for r, c in np.ndindex(*values_HWC.shape[:2]):
        top, bottom = (max(0, round(TIMES * y)) for y in sorted((rows[r], rows[r + 1])))
        left, right = (max(0, round(TIMES * x)) for x in sorted((columns[c], columns[c + 1])))
        found[top:bottom, left:right] = values_HWC[r, c]
    return found


def halved(lines: Sequence[float]) -> list[float]:
    """The lines between the cells of a depth map, K = 2 to a token."""
    between = [line for a, b in pairwise(lines) for line in (a, (a + b) / 2)]
    return [*between, lines[-1]]


def drawn_of(case: Case, seed: int = 0) -> tuple[Drawn, Tensor]:
    """A frame whose depth is painted by cell, as the probe reads it, and that scene, depth_HW."""
    draw = torch.Generator().manual_seed(seed)
    H, W = case.layout.rows, case.layout.cols
    depth_HW1 = 0.5 + 2 * torch.rand(H, W, 1, generator=draw)
    scene_HW = painted(depth_HW1, case.columns, case.rows, 2.9)[..., 0]
    tokens = VisualTokens.laid_out(
        torch.rand(1, H * W, 6, generator=draw),
        case.layout,
        [(HIGH, WIDE)],
        affine_FV23=None if case.camera is None else case.camera.expand(1, 1, 2, 3),
    )
    depth_Vhw = tokens.depth(scene_HW[None, None], K)[0]
    frame = Drawn(
        episode=3,
        frame=1,
        images=[(scene_HW[None, ::TIMES, ::TIMES] / 3).expand(3, -1, -1)],
        depth_Vhw=depth_Vhw,
        predicted_Vhw=torch.where(depth_Vhw.isnan(), 9.0, depth_Vhw + 0.25),
        tokens_VHWC=tokens.masked(tokens.valid_FVHW).tokens_FVHWC[0].half(),
        affine_V23=tokens.affine_FV23[0],
        valid_VHW=tokens.valid_FVHW[0],
    )
    return frame, scene_HW


def judged(case: Case) -> Tensor:
    """Mask of pixels in cells of the depth map that lie in the image by half, of tokens that are valid."""
    inside = []
    for lines, most in ((case.rows, HIGH), (case.columns, WIDE)):
        ends = torch.tensor([sorted(pair) for pair in pairwise(halved(lines))])
        inside.append((ends.clamp(0, most).diff() / ends.diff())[:, 0])
    share_hw = inside[0][:, None] * inside[1]
    valid_HW = drawn_of(case)[0].valid_VHW[0]
    counts_hw = (share_hw >= 0.5) & valid_HW.repeat_interleave(K, 0).repeat_interleave(K, 1)
    return painted(counts_hw[..., None].float(), halved(case.columns), halved(case.rows), 0.0)[..., 0] > 0


@pytest.fixture
def figure_of(monkeypatch, tmp_path) -> Callable[..., Any]:
    """Calls what writes PNGs, and returns the last figure."""
    made: list[Any] = []

    def kept(figure: Any, path: Path) -> Path:
        made.append(figure)
        return path

    for module in (figures_module, image_module):
        monkeypatch.setattr(module, "save_png", kept)

    def call(write: Callable[..., Any], drawn: Any, *how: Any) -> Any:
        write(drawn, tmp_path / "x.png", *how)
        made[-1].canvas.draw()
        return made[-1]

    return call


def rows_of(figure: Any) -> list[list[Any]]:
    """The panels of a figure that show something, by row; without the colour bars."""
    panels = [axis for axis in figure.axes if axis.images]
    heights = dict.fromkeys(axis.get_subplotspec().rowspan.start for axis in panels)
    return [[a for a in panels if a.get_subplotspec().rowspan.start == row] for row in heights]


def shown(axis: Any) -> Tensor:
    return torch.as_tensor(np.ma.filled(axis.images[0].get_array().astype(float), np.nan))


def check_one_frame(figure: Any) -> None:
    """All panels show the same region, as large as each other."""
    panels = [axis for row in rows_of(figure) for axis in row]
    assert {(axis.get_xlim(), axis.get_ylim()) for axis in panels} == {((0.0, WIDE), (HIGH, 0.0))}
    assert {tuple(axis.images[0].get_extent()) for axis in panels} == {(0.0, WIDE, HIGH, 0.0)}
    boxes = np.array([axis.get_window_extent().size for axis in panels])
    np.testing.assert_allclose(boxes, boxes[:1].repeat(len(boxes), 0), rtol=1e-3)


def test_painted_depth_is_drawn_where_it_was_painted(case, figure_of):
    frame, scene_HW = drawn_of(case)
    figure = figure_of(reading_images, {"x": [frame]}, RECORDED)
    check_one_frame(figure)
    (true, read), (image, error) = rows_of(figure)
    known_HW = judged(case)
    assert known_HW.double().mean() > 0.2
    for axis, expected_HW in ((true, scene_HW), (read, scene_HW + 0.25), (error, torch.tensor(0.25))):
        expected_HW = torch.where(known_HW, expected_HW, torch.nan).double()
        torch.testing.assert_close(shown(axis), expected_HW, rtol=0, atol=2e-3, equal_nan=True)
    assert shown(image).shape == (HIGH, WIDE, 3)


def test_colours_of_tokens_are_drawn_where_their_cells_lie(case, figure_of):
    frame, _ = drawn_of(case)
    figure = figure_of(token_colours, {"x": [frame]})
    check_one_frame(figure)
    ((_, axis),) = rows_of(figure)
    (rgb_HW3,) = principal_colours([frame.tokens_VHWC[0]], [frame.valid_VHW[0]])
    expected = painted(rgb_HW3.nan_to_num(0.8), case.columns, case.rows, 0.8)
    torch.testing.assert_close(shown(axis), expected.double(), rtol=0, atol=1e-6)


def test_similarity_is_drawn_between_the_lines_of_the_cells(case):
    frame, _ = drawn_of(case)
    ((policy,), cameras) = (
        similarity_data({"x": [frame]}, ["a.front"])[key] for key in ("policies", "cameras")
    )
    assert cameras == ["front"]
    assert WIDE * np.array(policy["columns"][0][0]) == pytest.approx(case.columns, abs=1e-3)
    assert HIGH * np.array(policy["rows"][0][0]) == pytest.approx(case.rows, abs=1e-3)
    assert policy["valid"] == [frame.valid_VHW.flatten().int().tolist()]


def test_what_tokens_of_padding_hold_changes_no_colour_and_no_similarity():
    frame, _ = drawn_of(CASES["padded above"])
    assert not frame.valid_VHW.all()
    other = replace(frame, tokens_VHWC=torch.where(frame.valid_VHW[..., None], frame.tokens_VHWC, 7.0))
    (rgb,), (again,) = (principal_colours([of.tokens_VHWC[0]], [of.valid_VHW[0]]) for of in (frame, other))
    torch.testing.assert_close(rgb, again, equal_nan=True)
    assert rgb[0].isnan().all()
    assert similarity_data({"x": [frame]}, []) == similarity_data({"x": [other]}, [])


def test_a_turned_grid_is_drawn_turned():
    quarter = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]])  # the first row lies at the right
    map_hw = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = in_image(map_hw, quarter, 4, 4)
    corners = found[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.tolist() == [3.0, 1.0, 4.0, 2.0]


def test_any_size_of_image_is_drawn_in_whole_multiples():
    map_hw = torch.arange(6.0).view(2, 3)
    for height, width in ((30, 48), (400, 300), (7, 5)):
        found = in_image(map_hw, identity(), height, width)
        assert found.shape[0] % height == 0
        assert found.shape[0] * width == found.shape[1] * height
        assert max(found.shape) >= FINE
        assert not found.isnan().any()
    assert in_image(map_hw, compose(crop(2, 2, 3, 3), identity()), 30, 48).isnan().all()


def test_the_heading_and_the_legend_name_the_depth(figure_of):
    frame, _ = drawn_of(CASES["shifted"])
    for depth, said in ((RECORDED, "true depth"), (PSEUDO, "pseudo depth")):
        figure = figure_of(reading_images, {"x": [frame]}, depth)
        assert [axis.get_title() for axis in rows_of(figure)[0]] == [said, "x"]
        assert figure.get_supxlabel() == f"grey: no token's cell, or no {said} in range; not judged"


def test_policies_that_look_at_other_parts_are_drawn_apart(tmp_path):
    here, there = (drawn_of(CASES[name])[0] for name in ("whole", "shifted"))
    assert here.depth_Vhw.shape == there.depth_Vhw.shape
    both = reading_images({"x": [here], "y": [there]}, tmp_path, RECORDED)
    assert [path.name for path in both] == ["readings.png", "readings-2.png"]
    assert len(reading_images({"x": [here], "y": [here]}, tmp_path, RECORDED)) == 1
