"""3D points of tokens: laws of their geometry, the cache they are stored in, and training toward them."""

import re
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from geometry import seen_at, unproject
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_configs import policy_config, train_config

from spatial_forcing.cache.beside import frames_at
from spatial_forcing.cache.store import CacheError, FeatureStore, are_from
from spatial_forcing.compare.features import Teaching
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.geometry.metres import metric_depths
from spatial_forcing.geometry.pinhole import Pinholes
from spatial_forcing.geometry.points import FRAMES, in_frame
from spatial_forcing.geometry.stored import extract_points, point_source, warn_of_turned
from spatial_forcing.probe.depths import Depths
from spatial_forcing.sim.camera import Jitter, default_cameras, stack_matrices
from spatial_forcing.sim.collect import DemoSpec, collect, demo_dataset, load_geometry
from spatial_forcing.train import train_or_continue

VIEWS = ["observation.images.left", "observation.images.right"]
SPEC = DemoSpec(episodes=4, frames=3, size=56)
SIZES = {"image_size": 56, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}


def teacher_file(name: str) -> Path:
    """The file of a teacher's weights that is packaged."""
    return Path(str(resources.files("spatial_forcing.teachers") / "weights" / f"{name}.safetensors"))


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collect(SPEC, tmp_path_factory.mktemp("demos") / "demos", workers=1)


@pytest.fixture(scope="module")
def dataset(demos):
    return demo_dataset(demos)


@pytest.fixture(scope="module")
def features(demos, tmp_path_factory) -> Path:
    """A cache with points, as one types it."""
    out = tmp_path_factory.mktemp("features") / "features"
    assert run("cache", "--out", out, "--dataset", demos, "--teacher", "untrained-tiny") == 0
    assert run("points", "--features", out, "--dataset", demos) == 0
    return out


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


# ---- stored ------------------------------------------------------------------------------------------------


def test_points_are_read_as_they_were_stored(features, dataset):
    store = FeatureStore(features, points=True)
    index = torch.tensor([11, 0, 5])
    found = store(index)
    source = point_source("recorded", dataset, VIEWS, None, "robot")
    expected = source.points(frames_at(dataset, index.tolist()), VIEWS, *store.grid[1:3])
    assert torch.equal(found.points_BVHW3.isfinite(), expected.isfinite())
    assert expected.isfinite().float().mean() > 0.5
    assert_close(found.points_BVHW3, expected, atol=2e-3, rtol=0, equal_nan=True)
    assert store.fingerprint != FeatureStore(features).fingerprint
    assert FeatureStore(features)(index).points_BVHW3 is None
    assert torch.equal(FeatureStore(features)(index).tokens_BVHWC, found.tokens_BVHWC)


def test_damaged_points_are_found_and_made_again_to_the_bit(features, demos, tmp_path, capsys):
    here = Path(shutil.copytree(features, tmp_path / "features"))
    shard = here / "points" / "shard-00000.safetensors"
    before = shard.read_bytes()
    shard.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    with pytest.raises(CacheError, match="is damaged: its sum is not the one in the manifest"):
        FeatureStore(here, points=True)(torch.tensor([0]))
    assert run("cache", "verify", "--out", here) == 2
    assert "1 of the files of" in (said := " ".join(capsys.readouterr().err.split()))
    assert "store the points again: spatial-forcing points" in said
    shutil.rmtree(here / "points")
    assert run("points", "--features", here, "--dataset", demos) == 0
    assert shard.read_bytes() == before
    assert run("cache", "verify", "--out", here) == 0


def test_points_that_are_there_are_looked_at_before_they_are_called_done(features, demos, tmp_path, capsys):
    here = Path(shutil.copytree(features, tmp_path / "features"))
    command = ("points", "--features", here, "--dataset", demos)
    assert run(*command) == 0
    assert "Nothing to do, all is there" in capsys.readouterr().out
    shard = here / "points" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:500])
    assert run(*command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "damaged" in said
    assert f"Remove {here / 'points'}" in said


@pytest.mark.parametrize(
    ("factor", "says"), [(1000.0, "probably in millimetres"), (1e-3, "depth_unit"), (0.0, "is unknown")]
)
def test_recorded_depth_in_another_unit_is_refused_before_anything_is_stored(
    features, demos, tmp_path, capsys, factor, says
):
    here = Path(shutil.copytree(features, tmp_path / "features"))
    shutil.rmtree(here / "points")
    there = Path(shutil.copytree(demos, tmp_path / "demos"))
    rescale(there, factor)
    assert run("points", "--features", here, "--dataset", there) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (here / "points").exists()


def rescale(demos: Path, factor: float) -> None:
    """Multiplies the recorded depth of demonstrations."""
    for path in (demos / "geometry").glob("*.safetensors"):
        found = load_file(path)
        found["depth_TVHW"] = (found["depth_TVHW"].float() * factor).half()
        save_file(found, path)


def test_points_of_depth_that_was_mended_are_others(features, demos, tmp_path, capsys):
    there = Path(shutil.copytree(demos, tmp_path / "demos"))
    rescale(there, 1.1)
    assert run("points", "--features", features, "--dataset", there) == 2
    assert "already holds another cache" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_file_of_the_geometry_is_named(demos, tmp_path):
    there = Path(shutil.copytree(demos, tmp_path / "demos"))
    path = there / "geometry" / "episode_000001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SpatialForcingError, match=r"episode_000001.safetensors cannot be read .*damaged"):
        load_geometry(there, 1)


def test_points_of_which_none_is_known_are_no_target(features, tmp_path):
    here = Path(shutil.copytree(features, tmp_path / "features"))
    store = FeatureStore(here, points=True).points
    store.check_points("recorded", "robot")
    mean_C, std_C = store.stats
    store.stats = (mean_C * 0, std_C)
    with pytest.raises(CacheError, match=r"of no token is the point known: .*spatial-forcing points"):
        store.check_points(None, None)


def test_the_command_continues_and_does_nothing_twice(demos, tmp_path, capsys):
    out = tmp_path / "features"
    written = ("cache", "--out", out, "--dataset", demos, "--teacher", "untrained-tiny", "--layers", "1", "3")
    assert run(*written) == 0
    with pytest.raises(CacheError, match="has no points of its tokens"):
        FeatureStore(out, layer=1, points=True)
    points = ("points", "--features", out, "--dataset", demos)
    assert run(*points) == 0
    said = capsys.readouterr().out
    assert "points of recorded geometry, robot frame" in said
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert run(*points) == 0
    assert run(*written) == 0
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    one, other = (FeatureStore(out, layer=layer, points=True)(torch.tensor([3])) for layer in (1, 3))
    assert_close(one.points_BVHW3, other.points_BVHW3, equal_nan=True)
    capsys.readouterr()
    assert run(*points, "--frame", "first-camera") == 2
    assert "first-camera frame" in " ".join(capsys.readouterr().err.split())


def test_points_of_other_frames_or_tokens_are_refused(features, demos, dataset, tmp_path):
    some, of = tmp_path / "some", ("--dataset", demos, "--teacher", "untrained-tiny")
    assert run("cache", "--out", some, *of, "--episodes", "0", "1") == 0
    shutil.copytree(features / "points", some / "points")
    with pytest.raises(CacheError, match="of another spans than the features"):
        FeatureStore(some, points=True)
    coarse = tmp_path / "coarse"
    assert run("cache", "--out", coarse, *of, "--grid", "4", "4") == 0
    shutil.copytree(features / "points", coarse / "points")
    with pytest.raises(CacheError, match=r"of a grid of 8 x 8 tokens, the features of 4 x 4"):
        FeatureStore(coarse, points=True)
    with pytest.raises(CacheError, match="no feature cache"):
        extract_points(demos, point_source("recorded", dataset, VIEWS, None, "robot"), tmp_path / "none")
    with pytest.raises(UnknownNameError, match="frame of points 'moon'"):
        point_source("recorded", dataset, VIEWS, None, "moon")


# ---- trained toward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", ["added", "concatenated", "alone"])
def test_a_policy_trains_toward_them_and_resumes(points, features, demos, tmp_path):
    forcing = {"cache": str(features), "points": points, "points_from": "recorded", "points_frame": "robot"}
    policy = policy_config("tiny", forcing, **SIZES)
    how = {"batch_size": 4, "seed": 0, "save_every": 2, "log_every": 1}
    train_or_continue(train_config(policy, demos, tmp_path / "run", steps=2, **how))
    side = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "spatial_forcing" / "forcing.json"
    assert f'"points": "{points}"' in side.read_text()


def test_options_that_do_not_fit_the_cache(features, demos, tmp_path):
    how = {"steps": 1, "batch_size": 2, "seed": 0, "save_every": 1}
    cached = {"cache": str(features)}
    for options, says in (
        ({"teacher": "untrained-tiny"}, "which spatial-forcing points stores beside a cache"),
        (cached | {"points_frame": "camera"}, "points_frame camera is asked for"),
        (cached | {"points_from": "pseudo:vggt-1b"}, "points_from pseudo:vggt-1b is asked for"),
    ):
        policy = policy_config("tiny", options | {"points": "alone"}, **SIZES)
        config = train_config(policy, demos, tmp_path / "run", **how)
        with pytest.raises(SpatialForcingError, match=says):
            train_or_continue(config)
    for options, says in (
        ({"points": "near"}, "Unknown forcing.points 'near'"),
        ({"points": "alone", "points_from": "psuedo:vggt-1b"}, "Did you mean pseudo:vggt-1b?"),
        ({"points": "alone", "points_frame": "moon"}, "frame of points 'moon'"),
        # Of a target without points it would say nothing, and train something else than was meant.
        ({"points_from": "recorded"}, "which points a target has, and this one has none"),
        ({"points_frame": "robot"}, "which points a target has, and this one has none"),
    ):
        with pytest.raises(SpatialForcingError, match=says):
            policy_config("tiny", options, **SIZES)


@pytest.mark.parametrize(
    ("said", "source", "agrees"),
    [
        ("points of recorded geometry, robot frame", "recorded", True),
        ("points of recorded, camera frame", "recorded", True),
        ("points of pseudo: vggt-1b, metres by the cameras, robot frame", "pseudo:vggt-1b", True),
        ("points of pseudo: vggt-1b, metres by the cameras, robot frame", "recorded", False),
        ("points of pseudo: vggt-1b, metres by the cameras, robot frame", "pseudo:vggt", False),
        ("points of pseudo: mapanything-nc, robot frame", "pseudo:mapanything", False),
        ("points of pseudo: depth-small, robot frame", "pseudo:someone/depth-small", True),
    ],
)
def test_points_are_from_the_depth_that_is_named_and_no_other(said, source, agrees):
    assert are_from(said, source) == agrees


def test_unfinished_points_name_their_own_command(features, tmp_path):
    shutil.copytree(features, tmp_path / "here")
    (tmp_path / "here" / "points" / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"an unfinished cache of points.*spatial-forcing points --features"):
        FeatureStore(tmp_path / "here", points=True)


def test_other_points_are_refused_with_what_can_be_done(features, demos, dataset, tmp_path):
    shutil.copytree(features, tmp_path / "here")
    other = point_source("recorded", dataset, VIEWS, None, "camera")
    with pytest.raises(CacheError, match=r"another cache of points.*Delete .*points \(the features beside"):
        extract_points(demos, other, tmp_path / "here")


def test_a_comparison_stores_points_in_folders_of_their_own():
    plain = Teaching("vggt-tiny-sim")
    recorded = replace(plain, points_from="recorded")
    predicted = replace(
        plain, points_from="pseudo:vggt-tiny-sim", points_frame="camera", calibration="a/cups.yaml"
    )
    folders = [one.folder(0.5) for one in (plain, recorded, predicted)]
    assert folders == [
        "vggt-tiny-sim-f50",
        "vggt-tiny-sim-points-recorded-robot-f50",
        "vggt-tiny-sim-points-pseudo-vggt-tiny-sim-camera-cups-f50",
    ]
