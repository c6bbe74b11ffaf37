"""3D points of tokens: laws of their geometry, and depth in metres."""

import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from geometry import seen_at, unproject
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small_points import SPEC, VIEWS, collected
from torch.testing import assert_close

from spatial_forcing.cache.beside import frames_at
from spatial_forcing.geometry.metres import metric_depths
from spatial_forcing.geometry.pinhole import Pinholes
from spatial_forcing.geometry.points import FRAMES, in_frame
from spatial_forcing.geometry.stored import point_source, warn_of_turned
from spatial_forcing.probe.depths import Depths
from spatial_forcing.sim.camera import Jitter, default_cameras, stack_matrices
from spatial_forcing.sim.collect import demo_dataset, load_geometry


def teacher_file(name: str) -> Path:
    """The file of a teacher's weights that is packaged."""
    return Path(str(resources.files("spatial_forcing.teachers") / "weights" / f"{name}.safetensors"))


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collected(tmp_path_factory.mktemp("demos"))


@pytest.fixture(scope="module")
def dataset(demos):
    return demo_dataset(demos)


# ---- geometry ----------------------------------------------------------------------------------------------


def random_pinholes(seed: int) -> Pinholes:
    """Two cameras around the table, moved at random."""
    rng = np.random.default_rng(seed)
    cameras = [Jitter(lookat=0.1, fov=10.0)(camera, rng) for camera in default_cameras()]
    return Pinholes(*(torch.from_numpy(of)[None] for of in stack_matrices(cameras, 1, 1)))


@given(seed=st.integers(0, 1000))
def test_points_stay_where_they_are_when_cameras_move(seed):
    # A floor at z = 0: its depth in every pixel follows from the camera alone.
    pinholes = random_pinholes(seed)
    unit_BVhw3 = seen_at(pinholes, torch.ones(1, 2, 9, 7))
    centre_BV113 = pinholes.centres_BV3[:, :, None, None]
    depth_BVhw = centre_BV113[..., 2] / (centre_BV113[..., 2] - unit_BVhw3[..., 2])
    seen = depth_BVhw > 0
    points_BVhw3 = seen_at(pinholes, depth_BVhw)
    assert points_BVhw3[seen][:, 2].abs().max() < 1e-4
    # What one view shows is where the other view shows it.
    other = random_pinholes(seed + 1)
    place, depth = other.project(points_BVhw3.flatten(2, 3))
    back_VN3, seen_VN = rays_to(other, place, depth)[0], seen.flatten(2)[0]
    assert_close(back_VN3[seen_VN], points_BVhw3.flatten(2, 3)[0][seen_VN], atol=1e-3, rtol=0)


def rays_to(pinholes: Pinholes, place_BVN2, depth_BVN):
    """The inverse of ``project``, from its definition."""
    place_BVN3 = torch.nn.functional.pad(place_BVN2, (0, 1), value=1.0)
    camera_BVN3 = place_BVN3 @ pinholes.intrinsics_BV33.inverse().mT * depth_BVN[..., None]
    R, t = pinholes.extrinsics_BV34[..., :3], pinholes.extrinsics_BV34[..., 3]
    return (camera_BVN3 - t[:, :, None]) @ R


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_keep_distances_and_the_cameras_are_where_they_should_be(frame):
    pinholes = random_pinholes(0)
    depth = torch.rand(1, 2, 5, 5) + 0.5
    world, found = seen_at(pinholes, depth), seen_at(in_frame(frame, pinholes), depth)
    for v in range(2):
        assert_close(
            torch.cdist(found[0, v].view(-1, 3), found[0, v].view(-1, 3)),
            torch.cdist(world[0, v].view(-1, 3), world[0, v].view(-1, 3)),
            atol=1e-4,
            rtol=0,
        )
    centres = in_frame(frame, pinholes).centres_BV3[0]
    assert (centres[0].abs().max() < 1e-5) == (frame in ("first-camera", "camera"))
    assert (centres[1].abs().max() < 1e-5) == (frame == "camera")
    if frame == "first-camera":  # distances across views, too
        assert_close(
            torch.cdist(found[0, 0].view(-1, 3), found[0, 1].view(-1, 3)),
            torch.cdist(world[0, 0].view(-1, 3), world[0, 1].view(-1, 3)),
            atol=1e-4,
            rtol=0,
        )
        assert_close(found[0, 0, ..., 2], depth[0, 0], atol=1e-4, rtol=0)


def test_points_are_the_mean_of_what_a_cells_pixels_show(dataset, demos):
    """Against unprojecting every pixel with the recorded matrices."""
    source = point_source("recorded", dataset, VIEWS, None, "robot")
    found = source.points(frames_at(dataset, [7]), VIEWS, 8, 8)[0]
    recorded = load_geometry(demos, 7 // SPEC.frames)
    geometry = {name: tensor[7 % SPEC.frames].float().numpy() for name, tensor in recorded.items()}
    for v in range(2):
        matrices = geometry["intrinsics_TV33"][v], geometry["extrinsics_TV34"][v]
        depth_HW = geometry["depth_TVHW"][v]
        whole_HW3 = torch.from_numpy(unproject(depth_HW, *matrices))
        cells = torch.from_numpy(depth_HW).view(8, 7, 8, 7).transpose(1, 2).flatten(2)
        flat = (cells.amax(-1) - cells.amin(-1) < 0.15) & (cells.amax(-1) < 2.9)
        mean = whole_HW3.view(8, 7, 8, 7, 3).transpose(1, 2).flatten(2, 3).mean(2)
        assert flat.sum() > 10
        assert (found[v] - mean).norm(dim=-1)[flat].max() < 0.03
        assert found[v].isnan().any(-1)[cells.amin(-1) > 3].all()


def test_both_views_show_the_same_surface(dataset):
    source = point_source("recorded", dataset, VIEWS, None, "robot")
    points = source.points(frames_at(dataset, [4]), VIEWS, 28, 28)[0]
    left, right = (of.view(-1, 3)[of.view(-1, 3).isfinite().all(-1)] for of in points)
    near = (left.norm(dim=-1) < 1.2) & (left[:, 2].abs() < 0.02)  # the table
    apart = torch.cdist(left[near], right).amin(1)
    assert near.sum() > 100
    assert apart.median() < 0.03


def test_the_end_effector_is_the_origin_of_its_frame(dataset):
    batch = frames_at(dataset, [1, 5])
    robot = point_source("recorded", dataset, VIEWS, None, "robot").points(batch, VIEWS, 4, 4)
    hand = point_source("recorded", dataset, VIEWS, None, "end-effector").points(batch, VIEWS, 4, 4)
    known, place_B3 = robot.isfinite(), batch["observation.state"][:, :3]
    assert_close((robot - hand)[known], place_B3[:, None, None, None].expand_as(robot)[known])


# ---- metres ------------------------------------------------------------------------------------------------


def test_a_scene_of_any_scale_comes_out_in_the_same_metres(dataset, monkeypatch):
    batch = frames_at(dataset, [0, 4])
    cameras = point_source("recorded", dataset, VIEWS, None, "robot").cameras
    depths = metric_depths("pseudo:vggt-tiny-sim", dataset, VIEWS, cameras)
    assert depths.name == "pseudo: vggt-tiny-sim, metres by the cameras"
    before = depths.of(batch, VIEWS)
    estimate = depths.of.depth.estimate

    def larger(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        depth_BVHW, extrinsics_BV34 = estimate(images)
        return 7.5 * depth_BVHW, extrinsics_BV34 * torch.tensor([1.0, 1.0, 1.0, 7.5])

    monkeypatch.setattr(depths.of.depth, "estimate", larger)
    assert_close(depths.of(batch, VIEWS), before)
    # And they are metres: right on the whole, though not in every place.
    recorded = metric_depths("recorded", dataset, VIEWS, cameras).of(batch, VIEWS)
    for found, true in zip(before, recorded, strict=True):
        assert 0.7 < (found / true).median() < 1.4


def test_cameras_that_a_model_sees_otherwise_are_warned_of(dataset, caplog):
    def degrees_said() -> list[int]:
        found = (
            re.search(r"differs from the calibration's by (\d+) degrees", one) for one in caplog.messages
        )
        return [int(one[1]) for one in found if one]

    cameras = point_source("pseudo:vggt-tiny-sim", dataset, VIEWS, None, "robot").cameras
    assert not degrees_said(), "the calibration is right"
    pinholes = cameras.pinholes
    swapped = SimpleNamespace(pinholes=lambda batch, keys: pinholes(batch, keys[::-1]))
    warn_of_turned(metric_depths("pseudo:vggt-tiny-sim", dataset, VIEWS, swapped).of, dataset, VIEWS)
    (degrees,) = degrees_said()
    assert degrees > 90
    assert f"between {VIEWS[0]} and {VIEWS[1]}" in caplog.text
    assert "spatial-forcing calibration check" in caplog.text


def test_the_end_effector_gives_the_scale_of_what_one_camera_sees(dataset, monkeypatch):
    batch = frames_at(dataset, list(range(12)))
    cameras = point_source("recorded", dataset, VIEWS, None, "robot").cameras
    true = metric_depths("recorded", dataset, VIEWS, cameras)
    factors = torch.rand(12)[:, None, None] + 0.2
    relative = Depths("model", "pseudo", True, lambda b, keys: [factors * d for d in true.of(b, keys)])
    monkeypatch.setattr("spatial_forcing.geometry.metres.pseudo", lambda model, device: relative)
    depths = metric_depths("pseudo:model", dataset, VIEWS[:1], cameras)
    assert depths.name == "model, metres by the end effector"
    assert not depths.relative
    ratio = depths.of(batch, VIEWS[:1])[0] / true.of(batch, VIEWS[:1])[0]
    known = ratio.isfinite().all(-1).all(-1)
    assert known.sum() >= 6
    assert ((ratio[known] - 1).abs() < 0.15).float().mean() > 0.8


def test_the_model_that_gave_the_depth_is_known_by_its_weights(dataset, tmp_path):
    """Retrained in place it gives other points: those that are stored are not continued with them."""
    own, file = teacher_file("vggt-tiny-sim"), tmp_path / "mine.safetensors"
    fingerprints = []
    for scale in (1.0, 1.0, 1.01):
        with safe_open(own, "pt") as opened:
            weights = {name: scale * opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            save_file(weights, file, opened.metadata())
        for keys in (VIEWS, VIEWS[:1]):  # metres by the cameras, by the end effector
            source = point_source(f"pseudo:{file}", dataset, keys, None, "robot")
            fingerprints.append((len(keys), source.fingerprint))
        assert source.fingerprint != point_source("recorded", dataset, VIEWS[:1], None, "robot").fingerprint
    first, again, other = fingerprints[:2], fingerprints[2:4], fingerprints[4:]
    assert first == again
    assert not {*first} & {*other}
