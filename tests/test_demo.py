"""The demo is a comparison: its folder, its demonstrations, and the whole of it on a tiny budget."""

import json

import pytest
from rich.console import Console

from spatial_forcing.compare.folder import comparison_in
from spatial_forcing.demo import demo_arms, run_demo, training_flags
from spatial_forcing.demo_settings import DemoSettings, hold, take_folder
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.results import Results
from spatial_forcing.sim.collect import DemoSpec

SMALL = DemoSettings(
    episodes=4,
    heldout_episodes=2,
    frames=4,
    steps=4,
    batch_size=2,
    evaluations=1,
    eval_episodes=1,
    teacher="untrained-tiny",
)


def test_demo_refuses_foreign_folders_and_other_settings(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpatialForcingError, match="not empty"):
        take_folder(tmp_path, DemoSettings())
    out = tmp_path / "demo"
    take_folder(out, DemoSettings())
    take_folder(out, DemoSettings())
    with pytest.raises(SpatialForcingError, match="seed: 0 there, 1 wanted"):
        take_folder(out, DemoSettings(seed=1))


@pytest.mark.parametrize("whole", [True, False])
def test_a_training_run_is_not_told_to_start_a_demo_inside_itself(tmp_path, whole):
    """Of the folder of a run, or of one checkpoint of it."""
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(SpatialForcingError, match=r"is a training run.*probe --policies.*doctor") as raised:
        comparison_in(tmp_path / "run" if whole else checkpoint)
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


def test_the_last_demonstrations_of_each_task_are_held_out():
    settings = DemoSettings(tasks=("reach-v3", "push-v3"), episodes=3, heldout_episodes=2)
    assert settings.demonstrations().episodes == 5
    assert settings.heldout() == (3, 4, 8, 9)
    assert DemoSpec(tasks=settings.tasks, episodes=5) == settings.demonstrations()


def test_its_command_trains_the_policy_that_was_tuned(tmp_path):
    flags = training_flags(DemoSettings(), tmp_path)
    for flag in ("--policy.optimizer_lr=0.001", "--policy.decay_lr=0.0001", "--policy.chunk_size=4"):
        assert flag in flags
    assert not [flag for flag in flags if "position_std" in flag], (
        "the policy's own default is what was tuned"
    )


def test_its_arms_are_those_of_every_comparison_and_two_references():
    roles = {arm.name: arm.role for arm in demo_arms(SMALL)}
    assert roles == {
        "plain": "arm",
        "forced": "arm",
        "shuffled": "control",
        "place": "control",
        "blind": "reference",
        "state": "reference",
    }


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_whole_demo_and_a_second_run_that_computes_nothing(tmp_path, monkeypatch):
    """But for the references, which are trained and judged as arms are."""
    monkeypatch.setattr("spatial_forcing.demo.references", list)
    out = tmp_path / "demo"
    report = run_demo(SMALL, out, console=Console(quiet=True))
    results = Results.read(out / "results.json")
    assert list(results.arms) == ["plain", "forced", "shuffled", "place"]
    for run in results.runs:
        assert run.train_episodes == 4
        assert [e.step for e in run.evaluations] == [4]
        assert run.evaluations[0].heldout_error
    assert [(a, b) for a, b in results.pairs()] == [(a, "forced") for a in ("plain", "shuffled", "place")]
    assert results.probe is not None
    names = [row.name for row in results.probe.rows]
    assert names[:4] == ["plain", "forced", "shuffled", "place"]
    references = {"untrained host", "mean depth", "raw pixels", "teacher's features", "shuffled tokens"}
    assert set(names[4:]) == references
    assert results.probe_sites is not None
    assert set(results.probe_sites.stacks["blocks"]) >= {"plain", "forced", "shuffled", "place"}
    assert results.samples
    for path in (results.probe.image, results.samples[0].path):
        assert path is not None
        assert (out / path).stat().st_size > 1000
    said = json.loads((out / "timings.json").read_text())
    assert set(said) >= {"demonstrations", "teacher features", "training and evaluation", "depth probe"}
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    assert run_demo(SMALL, out, console=Console(quiet=True)) == report
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*") if p.is_file()} == before
