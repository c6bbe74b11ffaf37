"""Demonstrations in LIBERO: only successes, in the public data set's format, whatever interrupts them.

The simulator's place is taken by a world of made-up frames; ``test_libero_world.py`` has the real one.
Shapes: T frames, V views, H W pixels.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_libero import MadeUpWorld, installed

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.geometry.cameras import cameras_of
from spatial_forcing.libero import collect as collecting
from spatial_forcing.libero.collect import collect, failures_in, features
from spatial_forcing.libero.install import LiberoError
from spatial_forcing.libero.spec import LiberoSpec
from spatial_forcing.probe.depths import recorded
from spatial_forcing.sim.collect import demo_dataset, load_geometry

SPEC = LiberoSpec(suite="libero_object", tasks=(1, 0), episodes=3, size=24)
IMAGE, WRIST = "observation.images.image", "observation.images.image2"


@pytest.fixture(scope="module", autouse=True)
def made_up(tmp_path_factory):
    """A made-up installation and simulator: attempts 1 and 4 at a task fail."""
    site = tmp_path_factory.mktemp("site")
    assets = installed(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spatial_forcing.libero.suites.libero_folder", lambda: assets.parent)
        patch.setattr(collecting, "check_installed", lambda: None)
        patch.setattr(collecting, "assets_folder", lambda: assets)
        patch.setattr("spatial_forcing.libero.attempts.LiberoWorld", MadeUpWorld)
        patch.setattr("spatial_forcing.libero.attempts.Expert", MadeUpWorld.expert)
        patch.setattr(collecting, "fixed_states", lambda task: MadeUpWorld.states)
        yield


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collect(SPEC, tmp_path_factory.mktemp("demos") / "demos", workers=1)


def files(root: Path) -> dict[str, bytes]:
    kept = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(kept)}


def test_only_successes_are_kept_and_failures_are_counted(demos):
    dataset = demo_dataset(demos)
    assert dataset.meta.total_episodes == 6
    assert failures_in(demos) == "2 of 8 attempts failed (task 1: 1 of 4, task 0: 1 of 4)."
    attempts = json.loads((demos / "demos.json").read_text())["attempts"]
    assert [one["success"] for one in attempts["1"]] == [True, False, True, True]
    assert all((dataset[i]["observation.state"][7] != MadeUpWorld.FAILED).all() for i in range(len(dataset)))
    assert not (demos / ".pieces").exists()


def test_names_shapes_and_words_are_those_of_the_public_data_set(demos):
    meta = demo_dataset(demos).meta
    assert meta.fps == 10
    assert meta.robot_type == "panda"
    assert meta.camera_keys == [IMAGE, WRIST]
    assert set(features(256)) == {IMAGE, WRIST, "observation.state", "action"}
    assert meta.features["observation.state"]["shape"] == (8,)
    assert meta.features["action"]["shape"] == (7,)
    assert meta.features[IMAGE]["shape"] == (24, 24, 3)
    assert set(meta.tasks.index) == {
        "pick up the milk and place it in the basket",
        "pick up the soup and place it in the basket",
    }


def test_depth_and_cameras_lie_beside_their_frames(demos):
    """Each made-up frame has its number in image, depth, camera and state."""
    dataset = demo_dataset(demos)
    source, depths = cameras_of(None, dataset), recorded(dataset, [IMAGE, WRIST])
    source.check(dataset.meta, [IMAGE, WRIST])
    for index in (0, 7, len(dataset) - 1):
        batch = torch.utils.data.default_collate([dataset[index]])
        number = float(batch["observation.state"][0, 6])
        for v, depth_BHW in enumerate(depths.of(batch, [IMAGE, WRIST])):
            assert torch.all(depth_BHW == number + v)
        pinholes = source.pinholes(batch, [IMAGE, WRIST])
        assert float(pinholes.extrinsics_BV34[0, 1, 2, 3]) == number
        assert float(pinholes.intrinsics_BV33[0, 0, 0, 0]) < 0
        assert torch.equal(source.end_effector(batch), batch["observation.state"][:, :3])
        assert round(255 * float(batch[IMAGE][0, 0, 0, 0])) == number


def test_matrices_are_stored_as_they_are(demos):
    """Whatever the order of their memory."""
    E_TV34 = load_geometry(demos, 0)["extrinsics_TV34"]
    np.testing.assert_array_equal(E_TV34[0, 0, :, :3], MadeUpWorld.ROTATION)


def test_an_interrupted_collection_continues_to_the_same_data(demos, tmp_path):
    root, counted = tmp_path / "demos", []

    def stop(episodes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(SPEC, root, workers=1, progress=stop)
    with pytest.raises(SpatialForcingError, match="not complete"):
        demo_dataset(root)
    there = {path.name: path.stat().st_mtime_ns for path in (root / ".pieces").glob("*.safetensors")}
    assert there
    collect(SPEC, root, workers=1, progress=counted.append)
    assert sum(counted) == 6
    assert files(root).keys() == files(demos).keys()
    data = [name for name in files(root) if name.startswith("geometry") or name == "demos.json"]
    assert {name: files(root)[name] for name in data} == {name: files(demos)[name] for name in data}
    rows, mine = demo_dataset(demos).hf_dataset, demo_dataset(root).hf_dataset
    assert [row["action"].tolist() for row in mine] == [row["action"].tolist() for row in rows]


def test_an_interrupted_joining_continues(demos, tmp_path, monkeypatch):
    root = tmp_path / "demos"
    with monkeypatch.context() as patch:

        def full(*_):
            raise SpatialForcingError("the disk is full")

        patch.setattr(collecting, "write_dataset", full)
        with pytest.raises(SpatialForcingError, match="full"):
            collect(SPEC, root, workers=1)
    collect(SPEC, root, workers=1)
    assert files(root)["demos.json"] == files(demos)["demos.json"]
    assert load_geometry(root, 5)["depth_TVHW"].equal(load_geometry(demos, 5)["depth_TVHW"])


def test_a_finished_data_set_is_used_as_it_is_and_another_left_alone(demos):
    before, counted = files(demos), []
    collect(SPEC, demos, progress=counted.append)
    assert sum(counted) == 6
    with pytest.raises(SpatialForcingError, match=r"spec\.rendering: 'stock' there, 'cheap' wanted"):
        collect(replace(SPEC, rendering="cheap"), demos)
    assert files(demos) == before


def test_a_task_that_the_expert_does_not_solve_ends_the_collection(tmp_path, monkeypatch):
    monkeypatch.setattr(MadeUpWorld, "fails", staticmethod(lambda attempt: attempt > 0))
    with pytest.raises(LiberoError, match=r"solved task 0 of libero_object in 1 of more than 9 attempts"):
        collect(replace(SPEC, tasks=(0,)), tmp_path / "demos", workers=1)


def test_starts_are_at_random_or_from_the_fixed_states(tmp_path, monkeypatch):
    MadeUpWorld.resets.clear()
    collect(replace(SPEC, tasks=(0,), seed=3), tmp_path / "random", workers=1)
    assert MadeUpWorld.resets == [(3, None), (4, None), (5, None), (6, None)]  # seed 4 fails
    MadeUpWorld.resets.clear()
    monkeypatch.setattr(MadeUpWorld, "states", np.zeros((4, 5)))
    collect(replace(SPEC, tasks=(0,), start="fixed"), tmp_path / "fixed", workers=1)
    assert MadeUpWorld.resets == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_mistakes_are_told_early():
    with pytest.raises(UnknownNameError, match="random"):
        LiberoSpec(start="randm")
    with pytest.raises(UnknownNameError, match="cheap"):
        LiberoSpec(rendering="fast")
    with pytest.raises(SpatialForcingError, match="whole number"):
        LiberoSpec(episodes=2.5)


def test_more_demonstrations_than_fixed_states_are_refused(tmp_path, monkeypatch):
    """At once if that is clear, else when too many attempts have failed."""
    fixed = replace(SPEC, tasks=(0,), start="fixed")
    with pytest.raises(LiberoError, match=r"has 2 fixed initial states, .* Give at most --episodes 2"):
        collect(fixed, tmp_path / "many", workers=1)
    assert not (tmp_path / "many").exists()
    with pytest.raises(LiberoError, match=r"From the 2 fixed .* the expert makes 1 demonstrations at most"):
        collect(replace(fixed, episodes=2), tmp_path / "failed", workers=1)  # attempt 1 fails
    monkeypatch.setattr(MadeUpWorld, "states", np.zeros((3, 5)))
    assert collect(replace(fixed, episodes=2), tmp_path / "enough", workers=1)
