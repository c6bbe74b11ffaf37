"""The point of a cell: on a surface that is there, the nearer one, in the middle of what is seen of it.

Shapes: B batch, V views, H W pixels, h w cells.
"""

import pytest
import torch
from geometry import seen_at
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from spatial_forcing.cache.beside import frames_at
from spatial_forcing.geometry.pinhole import Pinholes, unit_intrinsics
from spatial_forcing.geometry.stored import point_source
from spatial_forcing.geometry.surface import GAP, surface_points
from spatial_forcing.sim.collect import DemoSpec, collect, demo_dataset

FAR = 3.0
TABLE, CUP = 1.2, 0.9
VIEWS = ["observation.images.left", "observation.images.right"]


def one_camera() -> Pinholes:
    """A camera at the origin with images of 40 x 40 pixels."""
    K_33 = torch.tensor([[50.0, 0.0, 20.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]])
    return Pinholes(unit_intrinsics(K_33, 40, 40)[None, None], torch.eye(3, 4)[None, None])


def points(depth_HW: torch.Tensor, rows: int = 4, cols: int = 4) -> torch.Tensor:
    return surface_points(depth_HW[None, None], one_camera(), rows, cols, FAR)[0, 0]


def test_a_wall_is_where_the_cells_centres_show_it():
    wall_HW = torch.full((40, 40), 1.5)
    assert_close(points(wall_HW), seen_at(one_camera(), torch.full((1, 1, 4, 4), 1.5))[0, 0])


@pytest.mark.parametrize(("side", "shown"), [(4, CUP), (7, CUP), (3, TABLE)])
def test_an_object_counts_from_a_tenth_of_its_cell(side, shown):
    depth_HW = torch.full((40, 40), TABLE)
    depth_HW[21 : 21 + side, 12 : 12 + side] = CUP  # in the cell of rows 20 to 29 and columns 10 to 19
    found_hw3 = points(depth_HW)
    assert found_hw3[2, 1, 2].item() == pytest.approx(shown, rel=1e-5)
    if shown == CUP:  # its middle, and not the cell's
        middle_2 = torch.tensor([12 + side / 2 - 20, 21 + side / 2 - 20]) * CUP / 50
        assert_close(found_hw3[2, 1, :2], middle_2)
    found_hw3[2, 1, 2] = TABLE
    assert_close(found_hw3[..., 2], torch.full((4, 4), TABLE))


def test_small_surfaces_before_the_first_large_one_count_together():
    depth_HW = torch.full((40, 40), TABLE)
    depth_HW[20:22, 10:13], depth_HW[22:24, 10:13] = 0.5, CUP  # 6 % of their cell each
    assert points(depth_HW)[2, 1, 2].item() == pytest.approx(CUP, rel=1e-5)


@given(seed=st.integers(0, 1000), rows=st.sampled_from([1, 3, 5, 8]), cols=st.sampled_from([1, 4, 7]))
def test_no_point_lies_between_two_surfaces(seed, rows, cols):
    torch.manual_seed(seed)
    near_HW = torch.rand(40, 40) < torch.rand(())
    depth_HW = torch.where(near_HW, 0.6, 2.0) * (1 + 0.5 * GAP * torch.rand(40, 40))
    z_hw = points(depth_HW, rows, cols)[..., 2]
    assert (((z_hw >= 0.6) & (z_hw < 0.63)) | ((z_hw >= 2.0) & (z_hw < 2.1))).all()


def test_a_table_seen_at_a_low_angle_is_one_surface():
    depth_HW = torch.linspace(1.6, 0.8, 40)[:, None].expand(40, 40)
    assert_close(points(depth_HW)[..., 2], depth_HW.reshape(4, 10, 40).mean((1, 2))[:, None].expand(4, 4))


def test_pixels_without_depth_do_not_count_and_half_of_a_cell_is_needed():
    depth_HW = torch.full((40, 40), TABLE)
    depth_HW[:, :4] = 0.0  # 40 % of the first cells
    depth_HW[:, 10:16] = FAR  # 60 % of the second
    depth_HW[:10, 30:] = torch.nan
    found_hw3 = points(depth_HW)
    assert_close(found_hw3[:, 0, 2], torch.full((4,), TABLE))
    assert found_hw3[0, 0, 0].item() == pytest.approx((7 - 20) * TABLE / 50, rel=1e-5)
    assert found_hw3[:, 1].isnan().all()
    assert found_hw3[0, 3].isnan().all()
    assert found_hw3[1:, 3].isfinite().all()


def test_resolution_of_the_depth_map_does_not_matter():
    torch.manual_seed(0)
    coarse_HW = 0.5 + torch.rand(20, 20).round()
    fine_HW = coarse_HW.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert_close(points(fine_HW), points(coarse_HW))


def test_the_goal_of_reach_is_among_the_points_of_its_frames(tmp_path):
    """It is smaller than a cell: the mean depth over a cell lost it in nine frames of ten."""
    demos = collect(DemoSpec(episodes=8, frames=3), tmp_path / "demos", workers=1)
    dataset = demo_dataset(demos)
    batch = frames_at(dataset, range(len(dataset)))
    found_BVhw3 = point_source("recorded", dataset, VIEWS, None, "robot").points(batch, VIEWS, 8, 8)
    goal_B113 = batch["observation.environment_state"][:, None, None, -3:]
    off_B = (found_BVhw3.flatten(2, 3) - goal_B113).norm(dim=-1).nan_to_num(9.0).flatten(1).amin(1)
    assert (off_B < 0.05).float().mean() > 0.9
