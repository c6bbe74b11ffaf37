"""Demonstrations: what they contain, that they survive interruptions, that LeRobot reads them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from geometry import unproject

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.locks import LOCK, FolderBusyError, FolderLock
from spatial_forcing.sim.collect import DemoSpec, collect, demo_dataset, load_geometry, render_frames
from spatial_forcing.sim.experts import demonstrate
from spatial_forcing.sim.scenes import ScenesSpec, render_scenes
from spatial_forcing.sim.world import World

SPEC = DemoSpec(tasks=("reach-v3",), episodes=12, frames=3, size=64, seed=5)


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    done = []
    root = collect(SPEC, tmp_path_factory.mktemp("demos") / "demos", workers=2, progress=done.append)
    assert sum(done) == SPEC.episodes
    return root


@pytest.fixture(scope="module")
def world() -> World:
    return World("reach-v3", SPEC.size)


def columns(root: Path) -> dict[str, dict]:
    """Every value of the data set, images as their bytes."""
    import pyarrow.parquet as pq

    paths = [*sorted(root.glob("data/*/*.parquet")), *sorted(root.glob("meta/**/*.parquet"))]
    assert len(paths) == 3
    return {str(path.relative_to(root)): pq.read_table(path).to_pydict() for path in paths}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


# ---- content -----------------------------------------------------------------------------------------------


def test_lerobot_reads_back_what_was_recorded(demos, world):
    dataset = demo_dataset(demos)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (12, 36, 80)
    for episode in (0, 11):
        recorded = demonstrate(world, SPEC, episode)
        geometry = load_geometry(demos, episode)
        for t in range(SPEC.frames):
            item = dataset[SPEC.frames * episode + t]
            assert (item["episode_index"], item["frame_index"]) == (episode, t)
            assert item["task"] == "move the hand to the ball"
            for v, view in enumerate(("left", "right")):
                rgb = (item[f"observation.images.{view}"].permute(1, 2, 0) * 255).round().byte().numpy()
                assert np.array_equal(rgb, recorded["rgb_TVHW3"][t, v])
            assert np.array_equal(item["observation.state"], recorded["state_T4"][t])
            assert np.array_equal(item["observation.environment_state"], recorded["environment_state_T6"][t])
            assert np.array_equal(item["action"], recorded["action_T4"][t])
        for key in ("depth_TVHW", "intrinsics_TV33", "extrinsics_TV34"):
            assert np.array_equal(geometry[key].numpy(), recorded[key])


def test_geometry_finds_the_goal_that_the_data_set_names(demos):
    dataset = demo_dataset(demos)
    near = []
    for episode in range(SPEC.episodes):
        geometry = {key: value.numpy() for key, value in load_geometry(demos, episode).items()}
        for t in range(SPEC.frames):
            goal = dataset[SPEC.frames * episode + t]["observation.environment_state"][3:].numpy()
            for v in range(2):
                depth = geometry["depth_TVHW"][t, v].astype(np.float32)
                points = unproject(
                    depth, geometry["intrinsics_TV33"][t, v], geometry["extrinsics_TV34"][t, v]
                )
                near.append(np.sum(np.abs(np.linalg.norm(points - goal, axis=-1) - 0.04) < 0.005))
    assert np.mean(np.array(near) >= 5) > 0.9  # now and then the arm hides it


def test_recorded_actions_are_the_experts_even_when_noise_is_executed(world):
    """Meta-World's expert for reach is a proportional controller, with a gain of 5 and without a gripper."""
    noisy = replace(SPEC, noise=0.5, frames=8)
    for spec in (SPEC, noisy):
        recorded = demonstrate(world, spec, 1)
        error = recorded["environment_state_T6"][:, 3:] - recorded["state_T4"][:, :3]
        assert np.allclose(recorded["action_T4"][:, :3], np.clip(5 * error, -1, 1), atol=1e-5)
    calm = demonstrate(world, replace(noisy, noise=0.0), 1)
    assert np.array_equal(calm["state_T4"][0], recorded["state_T4"][0])
    assert not np.array_equal(calm["state_T4"][-1], recorded["state_T4"][-1])


def test_full_demonstrations_end_soon_after_success(world):
    recorded = demonstrate(world, replace(SPEC, frames=None, camera="fixed"), 0)
    distance = np.linalg.norm(recorded["environment_state_T6"][:, 3:] - recorded["state_T4"][:, :3], axis=1)
    assert distance[-1] <= 0.05
    assert 1 <= np.sum(distance <= 0.05) <= 11


def test_camera_modes(world):
    def poses(camera: str, episode: int) -> np.ndarray:
        return demonstrate(world, replace(SPEC, camera=camera), episode)["extrinsics_TV34"]

    fixed, episode, frame = (poses(mode, 0) for mode in ("fixed", "episode", "frame"))
    assert np.array_equal(fixed[0], fixed[-1])
    assert np.array_equal(fixed, poses("fixed", 1))
    assert np.array_equal(episode[0], episode[-1])
    assert not np.array_equal(episode, poses("episode", 1))
    assert all(not np.array_equal(frame[t], frame[t + 1]) for t in range(SPEC.frames - 1))
    assert not np.array_equal(frame[:, 0, :, 3] - fixed[:, 0, :, 3], frame[:, 1, :, 3] - fixed[:, 1, :, 3])


def test_warm_up_spreads_short_demonstrations_over_the_episode(world):
    spec = replace(SPEC, start="expert-warmup", frames=1)

    def distances(spec: DemoSpec) -> list[float]:
        states = [demonstrate(world, spec, e) for e in range(12)]
        return [
            float(np.linalg.norm(s["environment_state_T6"][0, 3:] - s["state_T4"][0, :3])) for s in states
        ]

    assert np.median(distances(spec)) < 0.6 * np.median(distances(replace(spec, start="random-hand")))


def test_render_frames_makes_a_batch():
    images, state, action = render_frames("reach-v3", 3, size=64)
    assert (images.shape, state.shape, action.shape) == ((3, 2, 3, 64, 64), (3, 4), (3, 4))
    assert 0 <= images.min() < images.max() <= 1


# ---- LeRobot's own writer ----------------------------------------------------------------------------------


def test_files_are_what_lerobot_itself_writes(demos, world, tmp_path):
    import pyarrow.parquet as pq
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from spatial_forcing.sim.dataset import FPS, features

    theirs = LeRobotDataset.create(
        "local/theirs", FPS, features(SPEC.size), root=tmp_path / "theirs", use_videos=False
    )
    for episode in range(2):
        recorded = demonstrate(world, SPEC, episode)
        for t in range(SPEC.frames):
            frame = {
                f"observation.images.{v}": recorded["rgb_TVHW3"][t, i]
                for i, v in enumerate(("left", "right"))
            }
            frame["observation.state"] = recorded["state_T4"][t]
            frame["observation.environment_state"] = recorded["environment_state_T6"][t]
            theirs.add_frame(
                frame | {"action": recorded["action_T4"][t], "task": "move the hand to the ball"}
            )
        theirs.save_episode()
    theirs.finalize()
    data, episodes = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
    info, their_info = (
        json.loads((root / "meta/info.json").read_text()) for root in (demos, tmp_path / "theirs")
    )
    assert info["features"] == their_info["features"]
    assert {k for k in info if info[k] != their_info[k]} <= {"total_episodes", "total_frames", "splits"}
    for name in (data, episodes):
        schema, their_schema = (pq.read_schema(root / name) for root in (demos, tmp_path / "theirs"))
        assert {field.name: field.type for field in schema} == {
            field.name: field.type for field in their_schema
        }
        if name == data:
            described = [json.loads(s.metadata[b"huggingface"])["info"] for s in (schema, their_schema)]
            assert described[0] == described[1]
    assert pq.read_metadata(demos / data).num_row_groups == SPEC.episodes
    mine, their = (pq.read_table(root / episodes).to_pydict() for root in (demos, tmp_path / "theirs"))
    for column, values in their.items():
        if not column.startswith("stats/"):
            assert mine[column][:2] == values, column
            continue
        name = column.split("/")[-1]
        exact = name in ("min", "max", "mean", "count")
        # Their standard deviation is a difference of float32 squares; their quantiles are from histograms.
        tolerance = 1e-5 if exact else 0.01 * np.ptp(values) + 1e-3
        assert np.allclose(mine[column][:2], values, atol=tolerance), column


# ---- interruptions, workers, folders -----------------------------------------------------------------------


def test_an_interrupted_collection_continues_to_the_same_data_with_other_workers(demos, tmp_path):
    root = tmp_path / "demos"

    def stop_after_first_piece(episodes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(SPEC, root, workers=1, progress=stop_after_first_piece)
    with pytest.raises(SpatialForcingError, match="not complete"):
        demo_dataset(root)
    (piece,) = (root / ".pieces").iterdir()
    kept = piece.stat().st_mtime_ns
    done = []

    def watch(episodes: int) -> None:
        assert piece.stat().st_mtime_ns == kept
        done.append(episodes)

    collect(SPEC, root, workers=1, progress=watch)
    assert done == [10, 2]
    assert columns(root) == columns(demos)
    data = {name: value for name, value in files(root).items() if not name.endswith(".parquet")}
    assert data == {name: value for name, value in files(demos).items() if not name.endswith(".parquet")}


def test_the_same_data_set_is_reused_at_once(demos, monkeypatch):
    before, done = files(demos), []
    monkeypatch.setattr(
        "spatial_forcing.sim.collect.in_processes", None
    )  # would fail if anything were recorded
    assert collect(SPEC, demos, progress=done.append) == demos
    assert done == [SPEC.episodes]
    assert files(demos) == before


def test_finished_demonstrations_that_lost_their_geometry_are_not_called_complete(demos, tmp_path):
    shutil.copytree(demos, tmp_path / "demos")
    next((tmp_path / "demos" / "geometry").iterdir()).unlink()
    with pytest.raises(SpatialForcingError, match=r"1 of \d+ episodes have lost their depth and cameras"):
        collect(SPEC, tmp_path / "demos", workers=1)


def test_another_data_set_or_a_foreign_folder_is_left_alone(demos, tmp_path):
    before = files(demos)
    with pytest.raises(
        SpatialForcingError,
        match=r"another collection of demonstrations \(spec.episodes: 12 there, 13 wanted\)",
    ):
        collect(replace(SPEC, episodes=13), demos)
    assert files(demos) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SpatialForcingError, match="not empty"):
        collect(SPEC, tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_that_another_process_writes_in_is_left_alone(tmp_path):
    root = tmp_path / "demos"
    with FolderLock(root):
        with pytest.raises(FolderBusyError, match=f"Another process is writing in {root}"):
            collect(SPEC, root)
        with pytest.raises(FolderBusyError, match=f"Another process is writing in {root}"):
            render_scenes(ScenesSpec(train=2), root)
        assert {path.name for path in root.iterdir()} == {LOCK}
    assert not list(root.iterdir())


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SpatialForcingError, match=r"needs about .* MiB; 1000 B are free"):
        collect(SPEC, tmp_path / "demos")
    assert not (tmp_path / "demos").exists()


def test_mistakes_are_told_early(demos, tmp_path):
    with pytest.raises(UnknownNameError, match="drawer-open-v3"):
        DemoSpec(tasks=("draw-open-v3",))
    with pytest.raises(UnknownNameError, match="expert-warmup"):
        DemoSpec(start="warmup")
    with pytest.raises(UnknownNameError, match="episode"):
        DemoSpec(camera="moving")
    with pytest.raises(SpatialForcingError, match="episodes must be at least 1; got 0"):
        DemoSpec(episodes=0)
    with pytest.raises(SpatialForcingError, match="none twice"):
        DemoSpec(tasks=("reach-v3", "reach-v3"))
    with pytest.raises(SpatialForcingError, match="has 12 episodes"):
        load_geometry(demos, 12)
    with pytest.raises(SpatialForcingError, match=r"no demos\.json"):
        demo_dataset(tmp_path)
