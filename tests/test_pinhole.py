"""Pinhole cameras: projection and its inverse, and that they are the embedded world's.

Shapes: B batch, V views, N points, H W pixels.
"""

import numpy as np
import pytest
import torch
from geometry import project, seen_at

from spatial_forcing.geometry.matrices import of_axis_angle
from spatial_forcing.geometry.pinhole import Pinholes, centres, unit_intrinsics
from spatial_forcing.sim.camera import default_cameras, stack_matrices

SIZE = 112


def some_cameras(B: int = 3, V: int = 2) -> Pinholes:
    """Random cameras, of images twice as wide as high."""
    K_33 = torch.tensor([[150.0, 0.0, 90.0], [0.0, 140.0, 60.0], [0.0, 0.0, 1.0]])
    R_BV33 = of_axis_angle(torch.randn(B * V, 3)).unflatten(0, (B, V))
    t_BV31 = torch.randn(B, V, 3, 1)
    return Pinholes(unit_intrinsics(K_33, 100, 200).expand(B, V, 3, 3), torch.cat([R_BV33, t_BV31], -1))


def test_projecting_unprojected_pixels_is_the_identity():
    cameras = some_cameras()
    depth_BVhw = 0.3 + torch.rand(3, 2, 5, 7)
    points_BVhw3 = seen_at(cameras, depth_BVhw)
    place_BVN2, depth_BVN = cameras.project(points_BVhw3.flatten(2, 3))
    expected_N2 = centres(5, 7)[..., :2].flatten(0, 1)
    torch.testing.assert_close(place_BVN2, expected_N2.expand_as(place_BVN2), atol=1e-4, rtol=0)
    torch.testing.assert_close(depth_BVN, depth_BVhw.flatten(2), atol=1e-4, rtol=0)


def test_unprojecting_projected_points_is_the_identity():
    cameras = some_cameras()
    place = torch.tensor([0.5, 0.5])  # the centre of an image of one pixel
    ahead_BV11 = torch.full((3, 2, 1, 1), 0.8)
    points_BV13 = seen_at(cameras, ahead_BV11)[:, :, 0]
    place_BV12, depth_BV1 = cameras.project(points_BV13)
    torch.testing.assert_close(place_BV12, place.expand_as(place_BV12), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen_at(cameras, depth_BV1[..., None])[:, :, 0], points_BV13)


def test_what_is_behind_a_camera_has_a_depth_below_zero():
    cameras = some_cameras()
    behind_BVN3 = seen_at(cameras, torch.full((3, 2, 1, 1), -0.5))[:, :, 0]
    assert (cameras.project(behind_BVN3)[1] < 0).all()


def test_unit_coordinates_do_not_depend_on_the_resolution():
    K_33 = torch.tensor([[150.0, 0.0, 90.0], [0.0, 140.0, 60.0], [0.0, 0.0, 1.0]])
    twice_33 = K_33 * torch.tensor([[2.0], [2.0], [1.0]])
    torch.testing.assert_close(unit_intrinsics(K_33, 100, 200), unit_intrinsics(twice_33, 200, 400))


@pytest.fixture(scope="module")
def rendered() -> tuple[Pinholes, np.ndarray, np.ndarray]:
    """The embedded world's pair of cameras, their matrices in pixels (K, E), and depth_VHW."""
    from spatial_forcing.sim.world import World

    cameras = default_cameras()
    world = World("reach-v3", SIZE)
    depth_VHW = np.stack([world.draw(camera)[1] for camera in cameras])
    intrinsics_V33, extrinsics_V34 = map(torch.from_numpy, stack_matrices(cameras, SIZE, SIZE))
    pinholes = Pinholes(unit_intrinsics(intrinsics_V33, SIZE, SIZE)[None], extrinsics_V34[None])
    return pinholes, depth_VHW, np.stack([camera.position for camera in cameras])


def test_points_land_where_the_embedded_worlds_matrices_put_them(rendered):
    pinholes, _, position_V3 = rendered
    points_N3 = np.array([[0.0, 0.66, 0.18], [0.2, 0.5, 0.1], [-0.3, 0.8, 0.3]], dtype=np.float32)
    place_1VN2, depth_1VN = pinholes.project(torch.from_numpy(points_N3).expand(1, 2, 3, 3))
    for v, camera in enumerate(default_cameras()):
        expected_N3 = project(points_N3, camera.intrinsics_33(SIZE, SIZE), camera.extrinsics_34)
        np.testing.assert_allclose(SIZE * place_1VN2[0, v].numpy(), expected_N3[:, :2], atol=1e-3)
        np.testing.assert_allclose(depth_1VN[0, v].numpy(), expected_N3[:, 2], atol=1e-5)
    np.testing.assert_allclose(pinholes.centres_BV3[0].numpy(), position_V3, atol=1e-5)


def test_what_one_camera_sees_another_sees_at_the_same_depth(rendered):
    pinholes, depth_VHW, _ = rendered
    points_1VHW3 = seen_at(pinholes, torch.from_numpy(depth_VHW)[None])
    for seer, other in ((0, 1), (1, 0)):
        points_N3 = points_1VHW3[0, seer].flatten(0, 1)
        place_1VN2, depth_1VN = pinholes.project(points_N3.expand(1, 2, -1, 3))
        place_N2, depth_N = place_1VN2[0, other], depth_1VN[0, other]
        inside_N = ((place_N2 > 0) & (place_N2 < 1)).all(-1) & (depth_N > 0)
        assert inside_N.float().mean() > 0.4
        x_N, y_N = (place_N2[inside_N] * SIZE).long().T
        behind_N = depth_N[inside_N] - torch.from_numpy(depth_VHW)[other][y_N, x_N]
        # What is hidden from the other camera is behind what it sees; nothing is in front of that, but for
        # surfaces that are seen so flatly that a pixel spans centimetres.
        assert (behind_N.abs() < 0.01).float().mean() > 0.6
        assert (behind_N < -0.01).float().mean() < 0.05
