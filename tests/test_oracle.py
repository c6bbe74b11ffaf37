"""The oracle: 3D points of what patches show, in demonstrations and rollouts, and the policy given them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from geometry import unproject
from small_policies import features_of
from training_configs import train_config

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.hosts.tiny_policy import POINTS, TinyConfig, TinyPolicy
from spatial_forcing.sim.collect import DemoSpec, collect, demo_dataset, load_geometry
from spatial_forcing.sim.env import SimEnv
from spatial_forcing.sim.experts import demonstrate
from spatial_forcing.sim.points import cell_points
from spatial_forcing.sim.world import World
from spatial_forcing.train import train_or_continue

SIZES = {"image_size": 56, "width": 32, "depth": 4, "heads": 2, "device": "cpu", "push_to_hub": False}
SPEC = DemoSpec(tasks=("reach-v3",), episodes=3, frames=2, size=56, points=8)


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collect(SPEC, tmp_path_factory.mktemp("demos") / "demos", workers=1)


def config_of(points: int, **more) -> TinyConfig:
    inputs, outputs = features_of({f"observation.images.{view}": (56, 56) for view in ("left", "right")})
    if points:
        inputs[POINTS] = replace(inputs["observation.state"], shape=(2 * points**2 * 3,))
    more = {
        "image_size": 56,
        "width": 32,
        "depth": 4,
        "heads": 2,
        "device": "cpu",
        "push_to_hub": False,
        **more,
    }
    return TinyConfig(input_features=inputs, output_features=outputs, **more)


def test_points_are_what_the_pixel_at_the_centre_of_a_cell_shows(demos):
    """In the data set: those of unprojecting the whole depth map."""
    dataset = demo_dataset(demos)
    geometry = {name: tensor.numpy() for name, tensor in load_geometry(demos, 2).items()}
    for t in range(SPEC.frames):
        points_Vcc3 = dataset[2 * SPEC.frames + t][POINTS].view(2, 8, 8, 3).numpy()
        for v in range(2):
            matrices = geometry["intrinsics_TV33"][t, v], geometry["extrinsics_TV34"][t, v]
            whole = unproject(geometry["depth_TVHW"][t, v].astype(np.float32), *matrices)
            near = geometry["depth_TVHW"][t, v][3::7, 3::7] < 2.5  # a cell of 7 pixels has one in the middle
            assert near.mean() > 0.5
            assert np.abs(points_Vcc3[v] - whole[3::7, 3::7])[near].max() < 2e-3


def test_a_rollout_shows_the_points_that_demonstrations_record():
    env, spec = SimEnv("reach-v3", size=56, points=8, camera="fixed"), replace(SPEC, camera="fixed")
    seen, _ = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    recorded = demonstrate(World("reach-v3", 56), spec, 0)
    stacked = (recorded[name][0] for name in ("depth_TVHW", "intrinsics_TV33", "extrinsics_TV34"))
    points = cell_points(*stacked, 8).ravel()
    assert seen["points"].shape == points.shape
    # Another start and another goal before the same table and cameras.
    assert np.median(np.abs(seen["points"] - points)) < 2e-3


def test_without_points_nothing_is_recorded_and_nothing_seen(tmp_path):
    plain = collect(replace(SPEC, points=0, episodes=1), tmp_path / "plain", workers=1)
    assert POINTS not in demo_dataset(plain).meta.features
    assert '"points"' not in (plain / "demos.json").read_text()
    assert set(SimEnv("reach-v3", size=56).reset(seed=0)[0]) == {"pixels", "agent_pos", "environment_state"}


def test_other_weights_are_those_of_the_policy_without_points():
    built = []
    for points in (0, 1):
        torch.manual_seed(0)
        built.append(TinyVLA(image_size=28, width=16, heads=2, points=points).state_dict())
    without, oracle = built
    assert set(oracle) - set(without) == {"points.weight", "points.bias"}
    assert all(torch.equal(without[name], oracle[name]) for name in without)


@pytest.mark.parametrize("cells", [4, 8])
def test_each_patch_is_given_the_points_that_lie_in_it(cells):
    policy = TinyPolicy(config_of(cells, use_points=True))
    v, r, c = torch.meshgrid(torch.arange(2), torch.arange(cells), torch.arange(cells), indexing="ij")
    points_BNP3 = policy.points_BNP3(torch.stack([v, r, c], -1).float().reshape(1, -1))
    k = cells // 4
    assert points_BNP3.shape == (1, 2 * 16, k * k, 3)
    for n, of_patch in enumerate(points_BNP3[0]):
        view, row, col = n // 16, n // 4 % 4, n % 4
        assert (of_patch[:, 0] == view).all()
        assert sorted(of_patch[:, 1].unique().tolist()) == [k * row + i for i in range(k)]
        assert sorted(of_patch[:, 2].unique().tolist()) == [k * col + i for i in range(k)]


def test_actions_depend_on_each_point():
    policy = TinyPolicy(config_of(4, use_points=True)).eval()
    images, words = torch.rand(1, 2, 3, 56, 56), torch.randint(1, 512, (1, 12))
    points = torch.rand(1, 32, 1, 3, requires_grad=True)
    policy.model(images, words, torch.zeros(1, 4), points).sum().backward()
    assert (points.grad != 0).all()


@pytest.mark.parametrize(("points", "more"), [(0, {}), (6, {}), (4, {"use_images": False})])
def test_points_that_do_not_fit_are_refused(points, more):
    with pytest.raises(SpatialForcingError, match=r"use_points needs observation.points .*--points 4"):
        TinyPolicy(config_of(points, use_points=True, **more))


def test_it_trains_on_points_in_metres(demos, tmp_path):
    """Which the preprocessor leaves as they are."""
    config = TinyConfig(use_points=True, **SIZES)
    how = {"steps": 2, "batch_size": 2, "seed": 0, "save_every": 2, "log_every": 1}
    run = train_config(config, demos, tmp_path / "run", **how)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        plain = TinyPolicy.points_BNP3
        patch.setattr(TinyPolicy, "points_BNP3", lambda self, x: seen.append(x) or plain(self, x))
        train_or_continue(run)
    recorded = torch.stack([demo_dataset(demos)[i][POINTS] for i in range(6)])
    for points_BX in seen:
        assert all((recorded - row).abs().amax(1).min() < 1e-6 for row in points_BX)
