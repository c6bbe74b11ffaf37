"""3D points of tokens: the cache they are stored in, and training toward them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import run
from safetensors.torch import load_file, save_file
from small_points import VIEWS, collected
from torch.testing import assert_close
from training_configs import policy_config, train_config

from spatial_forcing.cache.beside import frames_at
from spatial_forcing.cache.store import CacheError, FeatureStore, are_from
from spatial_forcing.compare.features import Teaching
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.geometry.stored import extract_points, point_source
from spatial_forcing.sim.collect import demo_dataset, load_geometry
from spatial_forcing.train import train_or_continue

SIZES = {"image_size": 56, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collected(tmp_path_factory.mktemp("demos"))


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
