"""The embedded world: seeds, cameras, depth, simplified meshes, experts, and its errors."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from geometry import project, unproject
from scipy.ndimage import minimum_filter

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.sim.camera import Camera, Jitter, default_cameras
from spatial_forcing.sim.meshes import cluster_faces
from spatial_forcing.sim.randomise import random_primitives, randomise_looks
from spatial_forcing.sim.tasks import POLICY_TASKS, TASKS, TEACHER_TASKS
from spatial_forcing.sim.world import World

LEFT, RIGHT = default_cameras()


@pytest.fixture(scope="module")
def world() -> World:
    return World("reach-v3")


def digest(world: World) -> str:
    """A fingerprint of images, depth and states."""
    parts = [world.state, world.environment_state, *world.draw(LEFT), *world.draw(RIGHT)]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    hidden = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


# ---- seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["reach-v3", "drawer-open-v3"])
def test_reset_forgets_everything_before_it(task):
    world = World(task)
    world.reset(3, "random-hand")
    first = digest(world)
    for _ in range(20):
        world.step(world.expert_action())
    randomise_looks(world, np.random.default_rng(0))
    world.reset(4)
    other = digest(world)
    world.reset(3, "random-hand")
    assert digest(world) == first != other


def test_seed_decides_in_another_process_too(world):
    digests = []
    for start in ("initial", "random-hand"):
        world.reset(7, start)
        world.step(world.expert_action())
        digests.append(digest(world))
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_sim_world import World, digest\n"
        "world = World('reach-v3', seed=99)\n"
        "for start in ('initial', 'random-hand'):\n"
        "    world.reset(7, start); world.step(world.expert_action()); print(digest(world))\n"
    )
    done = run_python(code)  # without MUJOCO_GL: the backend is chosen for us
    assert done.stdout.split() == digests, done.stderr


def test_asking_the_expert_changes_nothing(world):
    world.reset(5)
    before = digest(world)
    assert np.array_equal(world.expert_action(), world.expert_action())
    assert digest(world) == before


def test_random_starts_are_settled_and_clear_of_the_object(world):
    hands = []
    for seed in range(12):
        world.reset(seed, "random-hand")
        hands.append(world.state[:3])
        assert np.linalg.norm(world.state[:3] - world.environment_state[:3]) > 0.1
        world.step(np.zeros(4))
        assert np.linalg.norm(world.state[:3] - hands[-1]) < 0.01
    assert np.ptp(hands, axis=0).min() > 0.1


# ---- cameras and depth -------------------------------------------------------------------------------------


def matrices(camera: Camera, size: int = 112) -> tuple[np.ndarray, np.ndarray]:
    return camera.intrinsics_33(size, size), camera.extrinsics_34


def ball(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 1] > 120) & (rgb[..., 0] < 90) & (rgb[..., 2] < 110)


def test_extrinsics_are_a_rigid_opencv_pose():
    extrinsics_34 = LEFT.extrinsics_34.astype(np.float64)
    rotation_33 = extrinsics_34[:, :3]
    assert np.allclose(rotation_33 @ rotation_33.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation_33) == pytest.approx(1, abs=1e-6)
    assert np.allclose(extrinsics_34 @ [*LEFT.position, 1], 0, atol=1e-6)
    u, v, z = project(np.array([LEFT.lookat]), *matrices(LEFT))[0]
    assert (u, v, z) == pytest.approx((56, 56, LEFT.distance), abs=1e-4)
    above = project(np.add([LEFT.lookat], [0, 0, 0.1]), *matrices(LEFT))[0]
    assert above[1] < v  # y points down in the image


def test_depth_lands_on_the_goal_ball(world):
    rng = np.random.default_rng(0)
    for seed in range(6):
        world.reset(seed)
        camera = Jitter(lookat=0.05, fov=5.0)(RIGHT, rng)
        rgb, depth = world.draw(camera)
        seen = ball(rgb)
        assert seen.sum() > 10
        radii = np.linalg.norm(unproject(depth, *matrices(camera))[seen] - world.goal, axis=1)
        assert np.median(np.abs(radii - 0.04)) < 0.002
        assert np.quantile(np.abs(radii - 0.04), 0.9) < 0.01


def test_depth_finds_the_hand_and_the_table(world):
    world.reset(1)
    _, depth = world.draw(LEFT)
    points = unproject(depth, *matrices(LEFT)).reshape(-1, 3)
    assert (
        np.linalg.norm(points - world.state[:3], axis=1).min() < 0.05
    )  # the surface around the hand body's origin
    inside = (np.abs(points[:, 0]) < 0.5) & (points[:, 1] > 0.35) & (points[:, 1] < 0.85)
    table = points[inside & (np.abs(points[:, 2]) < 0.01)]
    assert len(table) > 1000
    assert np.abs(table[:, 2]).mean() < 0.001


def test_views_agree(world):
    """What one camera sees is never behind empty space for the other one."""
    world.reset(2)
    depths = {camera: world.draw(camera)[1] for camera in (LEFT, RIGHT)}
    for one, other in ((LEFT, RIGHT), (RIGHT, LEFT)):
        points = unproject(depths[one], *matrices(one)).reshape(-1, 3)
        points = points[(np.abs(points[:, 0]) < 0.4) & (points[:, 1] > 0.3) & (points[:, 1] < 0.9)]
        u, v, z = project(points, *matrices(other)).T
        inside = (u >= 1) & (u < 111) & (v >= 1) & (v < 111)
        nearest = minimum_filter(depths[other], 3)  # points at an edge may fall on the pixel beside it
        found = nearest[v[inside].astype(int), u[inside].astype(int)]
        gap = found - z[inside]
        assert inside.sum() > 3000
        assert np.mean(gap > 0.04) < 0.01
        assert np.mean(np.abs(gap) < 0.03) > 0.6


def test_project_inverts_unproject(world):
    world.reset(3)
    _, depth = world.draw(LEFT)
    pixels = project(unproject(depth, *matrices(LEFT)).reshape(-1, 3), *matrices(LEFT)).reshape(112, 112, 3)
    v, u = np.meshgrid(np.arange(112) + 0.5, np.arange(112) + 0.5, indexing="ij")
    assert np.allclose(pixels[..., 0], u, atol=0.01)
    assert np.allclose(pixels[..., 1], v, atol=0.01)
    assert np.allclose(pixels[..., 2], depth, rtol=1e-3)


def test_a_moved_camera_is_not_one_image_late(world):
    world.reset(4)
    randomise_looks(world, np.random.default_rng(1))  # a strong light on the camera
    world.draw(RIGHT)
    fresh = world.draw(LEFT)[0]
    again = world.draw(LEFT)[0]
    assert np.array_equal(fresh, again)
    assert not np.array_equal(fresh, world.draw(RIGHT)[0])


def test_primitives_are_in_the_image_and_in_the_depth(world):
    world.reset(5)
    rng = np.random.default_rng(3)
    shapes = next(s for s in iter(lambda: random_primitives(rng), None) if len(s) >= 3)
    with_shapes, without = world.draw(LEFT, shapes), world.draw(LEFT)
    changed = (with_shapes[0] != without[0]).any(axis=-1)
    assert changed.any()
    assert (with_shapes[1] <= without[1] + 1e-6).all()
    points = unproject(with_shapes[1], *matrices(LEFT))[with_shapes[1] < without[1] - 0.02]
    nearest = np.min([np.linalg.norm(points - shape.position, axis=1) for shape in shapes], axis=0)
    assert nearest.max() < 0.06 * np.sqrt(3) + 0.01


# ---- simplified meshes -------------------------------------------------------------------------------------


def test_simplified_meshes_look_the_same(world):
    full = World("reach-v3", decimated=False)
    faces, all_faces = (w.env.model.mesh_facenum.sum() for w in (world, full))
    assert faces < all_faces / 5
    for seed in range(3):
        for one in (world, full):
            one.reset(seed, "random-hand")
        (rgb, depth), (rgb_full, depth_full) = world.draw(LEFT), full.draw(LEFT)
        assert np.abs(rgb.astype(int) - rgb_full).mean() < 2
        assert np.mean(np.abs(depth - depth_full) < 0.01) > 0.97
        assert np.array_equal(world.state, full.state)  # physics does not see it


def test_clustering_keeps_fine_meshes_and_drops_collapsed_faces():
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij"), -1).reshape(-1, 2)
    vertices = np.c_[grid, np.zeros(64)]
    corner = np.array([8 * i + j for i in range(7) for j in range(7)])
    faces = np.r_[np.c_[corner, corner + 1, corner + 8], np.c_[corner + 1, corner + 9, corner + 8]]
    same, origin = cluster_faces(vertices, faces, cell=0.5)
    assert np.array_equal(same, faces)
    assert np.array_equal(origin, np.arange(len(faces)))
    fewer, origin = cluster_faces(vertices, faces, cell=2.0)
    assert 0 < len(fewer) < len(faces) / 2
    assert len(fewer) == len(origin)
    assert all(len(set(face)) == 3 for face in fewer.tolist())
    none, _ = cluster_faces(vertices, faces, cell=100.0)
    assert len(none) == 0


# ---- tasks, errors, imports --------------------------------------------------------------------------------


def test_tasks_are_meta_worlds_and_splits_are_disjoint():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS)
    assert not set(POLICY_TASKS) & set(TEACHER_TASKS)
    assert len(TEACHER_TASKS) >= 13


def test_unknown_names_are_answered_with_near_ones(world):
    with pytest.raises(UnknownNameError, match=r"'reech-v3'.*Did you mean 'reach-v3'.* 42 more\.$"):
        World("reech-v3")
    with pytest.raises(UnknownNameError, match="random-hand"):
        world.reset(0, "random")


NO_LIBRARY = """
import ctypes, ctypes.util
ctypes.util.find_library = lambda name: None
load = ctypes.CDLL.__init__
def refuse(self, name, *args, **options):
    if name and "mesa" in str(name).lower():
        raise OSError(f"{name}: cannot open shared object file")
    return load(self, name, *args, **options)
ctypes.CDLL.__init__ = refuse
from spatial_forcing.sim.world import World
World("reach-v3")
"""


def test_missing_gl_library_says_what_to_install():
    done = run_python(NO_LIBRARY)
    assert "RenderingError" in done.stderr
    assert "apt-get install libosmesa6" in done.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import os, sys, spatial_forcing.sim, spatial_forcing.sim.world, spatial_forcing.sim.collect\n"
        "heavy = {'mujoco', 'metaworld', 'torch', 'lerobot', 'gymnasium', 'OpenGL'} & set(sys.modules)\n"
        "assert not heavy and 'MUJOCO_GL' not in os.environ, heavy\n"
        "import mujoco\n"
        "from spatial_forcing.sim import World\n"
        "World('reach-v3')\n"
    )
    done = run_python(code)
    assert "mujoco was imported before a software renderer could be chosen" in done.stderr, done.stderr
