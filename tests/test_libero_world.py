"""LIBERO itself: what policies see of it, where its pixels' rays hit, and demonstrations of its tasks.

Skipped where LIBERO, its configuration or its assets are missing: ``libero check`` says which.
Shapes: V views, H W pixels.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.libero.attempts import demonstrate
from spatial_forcing.libero.collect import collect
from spatial_forcing.libero.expert import Expert
from spatial_forcing.libero.install import LiberoError, check_installed, libero_folder, load_libero
from spatial_forcing.libero.rendering import drawn, on_demand
from spatial_forcing.libero.spec import LiberoSpec
from spatial_forcing.libero.suites import tasks_of
from spatial_forcing.libero.world import CAMERAS, STILL_7, LiberoWorld
from spatial_forcing.sim.points import cell_points

pytestmark = pytest.mark.system
SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def libero():
    try:
        check_installed()
    except SpatialForcingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["libero_object", "libero_spatial"])
def world(request):
    world = LiberoWorld(tasks_of(request.param, (0,))[0], SIZE, "stock")
    yield world
    world.close()


def test_a_pixel_shows_where_mujocos_ray_through_it_hits(world):
    """Of both cameras, the moving one too; within 2 m, where depth is recorded to 0.5 mm."""
    import mujoco

    world.reset(seed=0, state=1)
    for _ in range(15):
        world.step(np.array([0.6, 0.4, -0.5, 0.2, -0.1, 0.5, 1], dtype=np.float32))
    frame, sim = world.draw(), world._env.sim
    matrices = frame["intrinsics_V33"], frame["extrinsics_V34"]
    points_Vcc3 = cell_points(frame["depth_VHW"].astype(np.float16), *matrices, SIZE)
    # What is drawn: the visual group, which collides with nothing; a ray sees no transparent geometry.
    group = np.array([0, 1, 0, 0, 0, 0], dtype=np.uint8)
    for v, camera in enumerate(CAMERAS.values()):
        number = sim.model.camera_name2id(camera)
        origin_3, rotation_33 = sim.data.cam_xpos[number], sim.data.cam_xmat[number].reshape(3, 3)
        focal = 0.5 * SIZE / np.tan(np.deg2rad(sim.model.cam_fovy[number]) / 2)
        off, draw = [], np.random.default_rng(v)
        for u, row in draw.integers(0, SIZE, (400, 2)):
            across, down = (SIZE - 1 - u + 0.5 - SIZE / 2) / focal, (row + 0.5 - SIZE / 2) / focal
            ray_3 = rotation_33 @ [across, -down, -1.0]
            hit = mujoco.mj_ray(
                sim.model._model, sim.data._data, origin_3, ray_3, group, 1, -1, np.zeros(1, np.int32)
            )
            if 0 < hit < 2:
                off.append(np.linalg.norm(points_Vcc3[v, row, u] - origin_3 - hit * ray_3))
        assert len(off) > 200
        # At an edge between two things the one or the other is hit.
        assert np.mean(np.array(off) < 1e-3) > 0.99, camera


def test_images_and_state_are_what_lerobots_processor_gives_policies(world):
    from lerobot.envs.libero import LiberoEnv, _get_suite
    from lerobot.envs.utils import preprocess_observation
    from lerobot.processor.env_processor import LiberoProcessorStep

    suite = world.task.suite
    env = LiberoEnv(
        _get_suite(suite),
        0,
        suite,
        obs_type="pixels_agent_pos",
        observation_width=SIZE,
        observation_height=SIZE,
    )
    observation, _ = env.reset(seed=3)
    batch = preprocess_observation(batched(observation))
    seen = LiberoProcessorStep()._process_observation(batch)
    env.close()
    world.reset(seed=3, state=0)
    np.testing.assert_allclose(world.state_8, seen["observation.state"][0], atol=1e-5)
    for v, name in enumerate(CAMERAS):
        theirs = (255 * seen[f"observation.images.{name}"][0].movedim(0, -1)).round().numpy()
        off = np.abs(world.draw()["rgb_VHW3"][v].astype(float) - theirs)
        assert np.mean(off) < 0.2  # theirs is one physics step older
        assert np.mean(off > 8) < 0.01


def batched(observation: dict) -> dict:
    """An observation of one environment as that of a vector of one."""
    return {k: batched(v) if isinstance(v, dict) else np.asarray(v)[None] for k, v in observation.items()}


def test_frames_drawn_afterwards_are_those_drawn_at_once(world):
    world.reset(seed=1)
    places, frames = [], []
    for _ in range(3):
        for _ in range(4):
            world.step(np.array([0.5, -0.3, -0.8, 0, 0, 0.4, -1], dtype=np.float32))
        places.append(world.snapshot)
        world.show(places[-1])  # a step ends with what is drawn a moment behind what moves
        frames.append(world.draw())
    for place, frame in zip(places, frames, strict=True):
        world.show(place)
        again = world.draw()
        np.testing.assert_allclose(again["depth_VHW"], frame["depth_VHW"], atol=1e-4)
        assert np.mean(again["rgb_VHW3"] != frame["rgb_VHW3"]) < 0.01


def test_the_same_seed_is_the_same_episode_and_states_are_counted(world):
    world.reset(seed=4, state=2)
    first = world.snapshot
    world.reset(seed=9)
    assert not np.array_equal(world.snapshot, first)
    world.reset(seed=4, state=2)
    np.testing.assert_array_equal(world.snapshot, first)
    with pytest.raises(LiberoError, match="There are 50 fixed initial states"):
        world.reset(seed=0, state=50)


@pytest.mark.parametrize(("suite", "task"), [("libero_object", 3), ("libero_spatial", 2)])
def test_the_expert_solves_a_task(suite, task):
    world = LiberoWorld(tasks_of(suite, (task,))[0])
    world.reset(seed=0, state=0)
    outcome = Expert(world.scene, world.step).run()
    solved = world.solved
    world.close()
    assert outcome.success
    assert solved
    assert outcome.steps < 220


def test_cheap_rendering_and_a_shutter_hold_for_lerobots_environments_until_they_end():
    wrapper = load_libero()
    task = tasks_of("libero_object", (0,))[0]

    def made() -> object:
        return wrapper.OffScreenRenderEnv(bddl_file_name=str(task.bddl), camera_heights=32, camera_widths=32)

    with drawn("cheap"), on_demand() as shutter:
        env = made()
        env.reset()
        cheap = env.step(STILL_7)[0]["agentview_image"]
        shutter.open = False
        moved = env.step(np.array([1, 1, -1, 0, 0, 0, -1], dtype=np.float32))[0]
        np.testing.assert_array_equal(moved["agentview_image"], cheap)
        shutter.open = True
        for _ in range(5):
            moved = env.step(np.array([1, 1, -1, 0, 0, 0, -1], dtype=np.float32))[0]
        assert not np.array_equal(moved["agentview_image"], cheap)
        env.close()
    env = made()
    env.seed(0)
    env.reset()
    stock = env.step(STILL_7)[0]["agentview_image"]
    env.close()
    assert not np.array_equal(stock, cheap)


def test_demonstrations_are_a_data_set_whose_actions_solve_the_task_again(tmp_path):
    spec = LiberoSpec(suite="libero_object", tasks=(0,), episodes=1, size=SIZE, seed=2)
    root = collect(spec, tmp_path / "demos", workers=1)
    dataset = open_dataset(root)
    actions = torch.stack(list(dataset.hf_dataset["action"])).numpy()
    states = torch.stack(list(dataset.hf_dataset["observation.state"])).numpy()
    assert np.abs(actions).max() <= 1
    world = LiberoWorld(tasks_of(spec.suite, spec.tasks)[0], SIZE)
    world.reset(seed=2)
    for action_7, state_8 in zip(actions, states, strict=True):
        np.testing.assert_array_equal(world.state_8, state_8)
        solved = world.step(action_7)
    assert solved
    outcome, again = demonstrate(world, spec, 0)
    world.close()
    assert outcome.steps == len(actions)
    np.testing.assert_array_equal(again["action_T7"], actions)


def test_a_first_import_without_a_configuration_does_not_wait(tmp_path):
    """With nobody at the other end of its standard input."""
    environment = dict(os.environ, LIBERO_CONFIG_PATH=str(tmp_path / "config"))
    folder = str(Path(libero_folder()).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([folder, environment.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "spatial_forcing.cli",
        "libero",
        "collect",
        "--out",
        str(tmp_path / "demos"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            code = process.wait(timeout=200)
        finally:
            process.kill()
        said = process.stderr.read()
    assert code == 2
    assert "libero check --write-config" in said
    assert not (tmp_path / "demos").exists()
