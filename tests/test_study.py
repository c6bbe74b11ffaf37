"""Arms of a comparison on a tiny budget: they really run, are reused, continue, and refuse to be mixed up."""

import json
import multiprocessing
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spatial_forcing.demo_settings import DemoSettings, finished_settings, hold, take_folder
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.evaluate import LoadedPolicy
from spatial_forcing.files import claim
from spatial_forcing.locks import FolderBusyError, FolderLock
from spatial_forcing.sim.collect import DemoSpec, collect
from spatial_forcing.study import Arm, evaluations_of, is_complete, run_arm, run_arms
from spatial_forcing.train import checkpoints

POLICY = {"image_size": 28, "width": 32, "heads": 2, "chunk_size": 2, "n_action_steps": 2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    spec = DemoSpec(episodes=3, frames=3, size=28)
    return collect(spec, tmp_path_factory.mktemp("demos") / "train", workers=1)


def an_arm(demos: Path, **changes) -> Arm:
    arm = Arm(
        name="blind",
        label="blind",
        role="reference",
        dataset=str(demos),
        heldout=str(demos),
        steps=4,
        batch_size=2,
        seed=0,
        env=({"task": "reach-v3", "size": 28, "max_steps": 4, "look_every": 2},),
        episodes=2,
        eval_seed=1_000_000,
        policy=POLICY,
        evaluations=2,
        videos=1,
    )
    return replace(arm, **changes)


@pytest.fixture(scope="module")
def finished(demos, tmp_path_factory) -> Path:
    """The folder of an arm that has been run."""
    return run_arm(an_arm(demos), tmp_path_factory.mktemp("finished") / "a")


def test_an_arm_trains_and_evaluates_every_checkpoint_and_is_reused(demos, finished):
    folder, evaluations = finished, evaluations_of(finished)
    assert [e.step for e in evaluations] == [2, 4] == list(checkpoints(folder / "train"))
    assert [e.seed for e in evaluations[0].episodes] == [1_000_000, 1_000_001]
    assert all(0 < e.closest_distance <= e.final_distance + 1e-9 for e in evaluations[0].episodes)
    assert evaluations[0].heldout_error != evaluations[1].heldout_error
    assert evaluations[0].videos == []
    assert (folder / evaluations[1].videos[0]).stat().st_size > 0
    assert is_complete(an_arm(demos), folder)
    assert not is_complete(an_arm(demos, evaluations=4), folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    run_arm(an_arm(demos), folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_another_arm_is_refused_and_nothing_is_lost(demos, tmp_path):
    claim(tmp_path / "arm.json", {"steps": 4}, what="run")
    with pytest.raises(SpatialForcingError, match="steps: 4 there, 5 wanted"):
        claim(tmp_path / "arm.json", {"steps": 5}, what="run")
    assert json.loads((tmp_path / "arm.json").read_text()) == {"steps": 4}


@pytest.mark.system
def test_a_failing_arm_is_named_with_its_log(demos, tmp_path):
    arm = an_arm(demos, name="broken", policy=POLICY | {"patch": 13})
    with pytest.raises(SpatialForcingError, match=r"'broken' failed.*not a multiple of the patch"):
        run_arms([arm], tmp_path, workers=1)
    assert "not a multiple" in (tmp_path / "broken" / "log.txt").read_text()


def test_an_arm_whose_process_is_killed_is_named_with_its_log(demos, tmp_path):
    def kill(progress) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(
        SpatialForcingError, match=r"'blind' failed.* SIGKILL: out of memory\?\nIts log: .*log.txt"
    ):
        run_arms([an_arm(demos)], tmp_path, workers=2, watch=kill)
    assert "out of memory?" in (tmp_path / "blind" / "log.txt").read_text()


def test_an_arm_that_prints_nothing_is_ended_with_its_stacks(demos, tmp_path):
    with pytest.raises(SpatialForcingError, match=r"'blind' failed.* made no progress for 0 s and was ended"):
        run_arms([an_arm(demos)], tmp_path, workers=1, patience=0.0)
    assert not multiprocessing.active_children()
    assert "made no progress" in (tmp_path / "blind" / "log.txt").read_text()


def test_arms_that_another_process_works_on_are_left_alone(demos, tmp_path):
    with FolderLock(tmp_path / "runs"), pytest.raises(FolderBusyError, match="Another process is writing in"):
        run_arms([an_arm(demos)], tmp_path / "runs")
    with FolderLock(tmp_path / "one"), pytest.raises(FolderBusyError, match="Another process is writing in"):
        run_arm(an_arm(demos), tmp_path / "one")
    assert not list(tmp_path.rglob("arm.json"))


def test_the_episodes_of_an_evaluation_do_not_depend_on_the_policy(demos, finished, tmp_path):
    blind = run_arm(an_arm(demos, evaluations=1, policy=POLICY | {"use_images": False}), tmp_path / "blind")
    sees, blind = (evaluations_of(folder)[-1] for folder in (finished, blind))
    assert [e.seed for e in sees.episodes] == [e.seed for e in blind.episodes]
    assert sees.heldout_error != blind.heldout_error


ROLLOUTS = """
import json, re, sys
from pathlib import Path
from spatial_forcing.evaluate import LoadedPolicy, roll_out
from spatial_forcing.sim.env import SimEnvConfig

def megabytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

loaded, after = LoadedPolicy(Path(sys.argv[1])), []
for _ in range(4):
    roll_out(loaded, SimEnvConfig(size=28, max_steps=2, look_every=2), episodes=10, seed=1_000_000)
    after.append(megabytes("VmRSS"))
print(json.dumps({"after": after, "peak": megabytes("VmHWM")}))
"""


@pytest.mark.system
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves"
)
def test_a_process_does_not_grow_with_every_evaluation(finished):
    """Ten environments take 200 MB, which stayed with the process."""
    checkpoint = checkpoints(finished / "train")[4]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ROLLOUTS, str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    open_ones = found["peak"] - found["after"][0]
    assert open_ones > 100
    assert max(found["after"]) - found["after"][0] < 0.4 * open_ones


def test_no_checkpoint_there(tmp_path):
    (tmp_path / "run" / "pretrained_model").mkdir(parents=True)
    (tmp_path / "run" / "pretrained_model" / "config.json").write_text("{}")
    with pytest.raises(SpatialForcingError, match=r"Did you mean .*pretrained_model"):
        LoadedPolicy(tmp_path / "run")


def test_demo_refuses_foreign_folders_and_other_settings(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpatialForcingError, match="not empty"):
        take_folder(tmp_path, DemoSettings())
    out = tmp_path / "demo"
    take_folder(out, DemoSettings())
    take_folder(out, DemoSettings())
    with pytest.raises(SpatialForcingError, match="seed: 0 there, 1 wanted"):
        take_folder(out, DemoSettings(seed=1))
    with pytest.raises(SpatialForcingError, match="not finished"):
        finished_settings(out)
    with pytest.raises(SpatialForcingError, match="no demo run"):
        finished_settings(tmp_path)
    with pytest.raises(SpatialForcingError, match=r"There is no folder .*nowhere"):
        finished_settings(tmp_path / "nowhere")


@pytest.mark.parametrize("whole", [True, False])
def test_a_training_run_is_not_told_to_start_a_demo_inside_itself(tmp_path, whole):
    """Of the folder of a run, or of one checkpoint of it."""
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(SpatialForcingError, match=r"is a training run.*probe --policies.*doctor") as raised:
        finished_settings(tmp_path / "run" if whole else checkpoint)
    assert "spatial-forcing demo" not in str(raised.value)
    assert f"--checkpoint {checkpoint}," in str(raised.value)


def test_two_demos_cannot_run_in_one_folder(tmp_path):
    lock = hold(tmp_path)
    with pytest.raises(SpatialForcingError, match="Another demo is running"):
        hold(tmp_path)
    lock.close()
    hold(tmp_path).close()


def test_demo_checks_the_disk_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    with pytest.raises(SpatialForcingError, match=r"needs about 1.0 GiB; 976.6 KiB are free"):
        take_folder(tmp_path / "demo", DemoSettings())
