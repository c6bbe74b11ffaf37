"""Scenes for a teacher: a function of the seed and the shard, resumable, in a folder of their own."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from geometry import unproject
from safetensors.numpy import load_file

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.sim.scenes import ScenesSpec, plan, render_scenes
from spatial_forcing.sim.tasks import POLICY_TASKS, TEACHER_TASKS

SPEC = ScenesSpec(train=2, seen_val=1, unseen_val=1, size=64, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    seen = []
    out = render_scenes(
        SPEC, tmp_path_factory.mktemp("scenes") / "a", workers=1, progress=lambda *n: seen.append(n)
    )
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    return out


def test_shards_hold_what_they_promise(scenes):
    manifest = json.loads((scenes / "scenes.json").read_text())
    assert manifest["counts"] == {"train": 2, "seen-val": 1, "unseen-val": 1}
    assert {path.name for path in scenes.iterdir()} == {
        "scenes.json",
        *(s["file"] for s in manifest["shards"]),
    }
    for shard in manifest["shards"]:
        tensors = load_file(scenes / shard["file"])
        n = shard["scenes"]
        assert {key: (value.shape, value.dtype.name) for key, value in tensors.items()} == {
            "rgb_NVHW3": ((n, 2, 64, 64, 3), "uint8"),
            "depth_NVHW": ((n, 2, 64, 64), "float16"),
            "intrinsics_NV33": ((n, 2, 3, 3), "float32"),
            "extrinsics_NV34": ((n, 2, 3, 4), "float32"),
            "task_N": ((n,), "int64"),
        }
        assert manifest["tasks"][tensors["task_N"][0]] == shard["task"]
        assert shard["task"] in (POLICY_TASKS if shard["split"] == "unseen-val" else TEACHER_TASKS)
        depth = tensors["depth_NVHW"].astype(np.float32)
        assert depth.min() > 0
        assert depth.max() <= 5
        cameras = tensors["intrinsics_NV33"][0, 0], tensors["extrinsics_NV34"][0, 0]
        points = unproject(depth[0, 0], *cameras).reshape(-1, 3)
        assert np.sum(np.abs(points[:, 2]) < 0.005) > 100  # the table is where it is in every scene


def test_an_interrupted_run_continues_to_the_same_bytes_with_other_workers(scenes, tmp_path):
    complete = contents(scenes)
    for name, data in complete.items():
        if not name.startswith("train-00000"):
            (tmp_path / name).write_bytes(data)
    (tmp_path / "unseen-val-00000.safetensors").unlink()
    kept = (tmp_path / "train-00001.safetensors").stat().st_mtime_ns
    render_scenes(SPEC, tmp_path, workers=2)
    assert contents(tmp_path) == complete
    assert (tmp_path / "train-00001.safetensors").stat().st_mtime_ns == kept


def test_another_set_or_a_foreign_folder_is_left_alone(scenes, tmp_path):
    before = contents(scenes)
    with pytest.raises(SpatialForcingError, match=r"another set of scenes \(spec.seed: 3 there, 4 wanted"):
        render_scenes(ScenesSpec(2, 1, 1, size=64, seed=4), scenes)
    assert contents(scenes) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SpatialForcingError, match="not empty"):
        render_scenes(SPEC, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SpatialForcingError, match=r"needs about .* KiB; 1000 B are free"):
        render_scenes(SPEC, tmp_path / "huge")
    assert not (tmp_path / "huge").exists()


def test_plan_shares_scenes_out_evenly():
    spec = ScenesSpec(train=5000, seen_val=101, unseen_val=50)
    shards = plan(spec)
    counts = {
        task: sum(s.scenes for s in shards if s.task == task and s.split == "train") for task in TEACHER_TASKS
    }
    assert sum(counts.values()) == 5000
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({shard.file for shard in shards}) == len(shards)
