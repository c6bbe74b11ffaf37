"""Depth averaged over cells, and the metrics of predicted depth."""

import pytest
import torch
from small_probe import planted

from spatial_forcing.probe import cell_depth, metrics


@pytest.mark.parametrize(("height", "width"), [(6, 8), (12, 8), (7, 11), (28, 29)])
def test_cells_are_exact_on_ramps_at_any_resolution(height, width):
    """The mean of a + b*y + c*x over a cell is its value at the cell's centre."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    if (
        height % 6 or width % 8
    ):  # a pixel shared by two cells brings its own mean into both: exact for constants
        depth, expected = torch.full((height, width), 1.3), torch.full((6, 8), 1.3)
    else:
        cy, cx = (torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8
        depth, expected = 1 + y[:, None] + 0.5 * x, 1 + cy[:, None] + 0.5 * cx
    torch.testing.assert_close(cell_depth(depth[None, None], 6, 8)[0, 0], expected)


def test_cells_keep_the_mean_of_the_image_at_any_resolution():
    depth = 0.5 + torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cell_depth(depth, 5, 6).mean((2, 3)), depth.mean((2, 3)))


def test_averaging_what_is_averaged_changes_nothing():
    depth = 4 * torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0))
    once = cell_depth(depth, 5, 6)
    torch.testing.assert_close(cell_depth(once, 5, 6), once, equal_nan=True)


def test_a_cell_needs_depth_on_half_of_its_area():
    depth = torch.ones(1, 1, 2, 4)
    depth[..., 0, 2], depth[..., 1, 2:] = 0.0, 9.0
    cells = cell_depth(depth, 1, 2, far=3.0)[0, 0, 0]
    assert cells[0] == 1.0
    assert cells[1].isnan()


def test_metrics_have_their_known_values():
    true = torch.tensor([1.0, 2.0, 2.0, 0.0]).view(1, 1, 2, 2)
    predicted = torch.tensor([1.2, 2.0, 1.0, 9.0]).view(1, 1, 2, 2)
    found = metrics(predicted, true)
    assert found.absrel == pytest.approx((0.2 + 0 + 0.5) / 3)
    assert found.rmse_m == pytest.approx(((0.04 + 0 + 1) / 3) ** 0.5)
    assert found.delta1 == pytest.approx(2 / 3)
    assert found.pixels == 3


def test_ratios_ignore_the_unit_and_metres_do_not():
    _, true = planted()
    predicted = true * torch.exp(0.2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1)))
    metres, tens = metrics(predicted, true), metrics(10 * predicted, 10 * true, far=30)
    assert (tens.absrel, tens.delta1) == pytest.approx((metres.absrel, metres.delta1))
    assert tens.rmse_m == pytest.approx(10 * metres.rmse_m)
