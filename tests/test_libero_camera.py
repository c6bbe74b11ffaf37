"""Cameras of images that are mirrored left to right, as policies see LIBERO's: laws, and rays of MuJoCo.

Shapes: H W pixels, N points, B batch, V views.
"""

import mujoco
import numpy as np
import pytest
import torch
from geometry import project, seen_at, unproject
from hypothesis import given
from hypothesis import strategies as st

from spatial_forcing.geometry.pinhole import Pinholes, unit_intrinsics
from spatial_forcing.libero.camera import as_policies_see, extrinsics_34, intrinsics_33, mirrored
from spatial_forcing.sim.camera import default_cameras, stack_matrices
from spatial_forcing.sim.points import cell_points
from spatial_forcing.sim.render import load_mujoco

SIZE, FOVY = 96, 50.0
# Boxes and planes: what is round is drawn by flat pieces, and is millimetres off.
ROOM = """
<mujoco>
  <visual><global offwidth="96" offheight="96"/><map znear="0.01" zfar="20"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="3 3 0.1"/>
    <geom type="box" size="0.1 0.2 0.15" pos="0.2 0.15 0.15" euler="0 0 25"/>
    <geom type="box" size="0.12 0.1 0.1" pos="-0.25 0.1 0.12" euler="20 30 0"/>
    <geom type="box" size="0.06 0.06 0.2" pos="0.05 -0.3 0.2" euler="20 0 0"/>
    <camera name="oblique" fovy="50" pos="1.1 -0.3 0.9" xyaxes="0.3 1 0 -0.6 0.2 0.8"/>
    <camera name="above" fovy="50" pos="-0.1 0.1 1.2" xyaxes="0.8 -0.6 0 0.6 0.8 0"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def room():
    """A small scene, compiled, with its renderer."""
    load_mujoco()
    model = mujoco.MjModel.from_xml_string(ROOM)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.enable_depth_rendering()
        yield model, data, renderer


@pytest.mark.parametrize("camera", ["oblique", "above"])
def test_a_pixel_shows_where_mujocos_ray_through_it_hits(room, camera):
    """The ray of a pixel of the mirrored image is that of the true camera's pixel W - 1 - u."""
    model, data, renderer = room
    number = model.camera(camera).id
    position_3, rotation_33 = data.cam_xpos[number], data.cam_xmat[number].reshape(3, 3)
    renderer.update_scene(data, camera)
    raw_HW = renderer.render()[::-1]  # the renderer gives what OpenGL gives, upside down, turned over
    K_33, E_34 = intrinsics_33(FOVY, SIZE, SIZE), extrinsics_34(position_3, rotation_33)
    shown_HW3 = unproject(as_policies_see(raw_HW).copy(), K_33.astype(np.float32), E_34.astype(np.float32))
    focal = 0.5 * SIZE / np.tan(np.deg2rad(FOVY) / 2)
    pixels = np.random.default_rng(0).integers(0, SIZE, (300, 2))
    for u, v in pixels:
        true_u = SIZE - 1 - u
        ray_3 = rotation_33 @ [(true_u + 0.5 - SIZE / 2) / focal, -(v + 0.5 - SIZE / 2) / focal, -1.0]
        distance = mujoco.mj_ray(model, data, position_3, ray_3, None, 1, -1, np.zeros(1, np.int32))
        hit_3 = position_3 + distance * ray_3
        assert np.linalg.norm(shown_HW3[v, u] - hit_3) < 1e-3


@given(seed=st.integers(0, 1000), width=st.integers(20, 90), height=st.integers(20, 90))
def test_readers_find_the_same_points_in_an_image_and_its_mirror_image(seed, width, height):
    draw = np.random.default_rng(seed)
    (K_33, *_), (E_34, *_) = stack_matrices(default_cameras(), height, width)
    depth_HW = draw.uniform(0.3, 2, (height, width)).astype(np.float32)
    other_33, other_HW = mirrored(K_33, width).astype(np.float32), depth_HW[:, ::-1].copy()
    true_HW3 = unproject(depth_HW, K_33, E_34)
    np.testing.assert_allclose(unproject(other_HW, other_33, E_34)[:, ::-1], true_HW3, atol=1e-5)
    there = cell_points(depth_HW[None], K_33[None], E_34[None], height)
    mirror = cell_points(other_HW[None], other_33[None], E_34[None], height)
    if width == height:  # else the centre of a cell is between pixels, and which is taken depends on the side
        np.testing.assert_allclose(mirror[:, :, ::-1], there, atol=1e-5)
    cameras = Pinholes(
        unit_intrinsics(torch.from_numpy(other_33), height, width)[None, None],
        torch.from_numpy(E_34)[None, None],
    )
    points_BVhw3 = seen_at(cameras, torch.from_numpy(other_HW)[None, None])
    np.testing.assert_allclose(points_BVhw3[0, 0].numpy()[:, ::-1], true_HW3, atol=1e-5)
    np.testing.assert_allclose(cameras.centres_BV3[0, 0], -E_34[:, :3].T @ E_34[:, 3], atol=1e-5)


@given(seed=st.integers(0, 1000))
def test_a_point_is_as_far_from_the_right_edge_as_it_was_from_the_left(seed):
    draw = np.random.default_rng(seed)
    (K_33, *_), (E_34, *_) = stack_matrices(default_cameras(), 80, 80)
    points_N3 = draw.uniform(-0.3, 0.3, (20, 3)) + np.array([0, 0.66, 0.18])
    true_N3 = project(points_N3, K_33, E_34)
    mirror_N3 = project(points_N3, mirrored(K_33, 80), E_34)
    np.testing.assert_allclose(mirror_N3, [80, 0, 0] + true_N3 * [-1, 1, 1], atol=1e-3)


def test_mirrored_twice_is_as_it_was():
    K_33 = np.array([[50.0, 0, 31], [0, 55, 40], [0, 0, 1]])
    np.testing.assert_allclose(mirrored(mirrored(K_33, 64), 64), K_33)


def test_extrinsics_are_a_rotation_and_no_mirror(room):
    _, data, _ = room
    E_34 = extrinsics_34(data.cam_xpos[0], data.cam_xmat[0].reshape(3, 3))
    assert np.linalg.det(E_34[:, :3]) == pytest.approx(1)
    np.testing.assert_allclose(E_34[:, :3] @ data.cam_xpos[0] + E_34[:, 3], 0, atol=1e-12)
