"""Evaluations: fixed episodes whatever the order, continued where interrupted, compared in pairs."""

import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_depth import painted_dataset, saved_tiny
from small_workers import children, is_running

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.evaluation.env_flags import EvalError, read_env
from spatial_forcing.evaluation.known import rendering_warning, settings_warning
from spatial_forcing.evaluation.options import Eval
from spatial_forcing.evaluation.plan import EvalTask, Plan, check_episodes, tasks_of, weights_of
from spatial_forcing.evaluation.results import EvalResults
from spatial_forcing.evaluation.rollout import Rollouts
from spatial_forcing.evaluation.table import markdown

FLAGS = ["--env.type=sf_metaworld", "--env.task=reach-v3,push-v3", "--env.size=28", "--env.max_steps=4"]
SEED = 1_000_000


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, Path]:
    """Two small policies that see what the embedded world shows."""
    folder = tmp_path_factory.mktemp("policies")
    dataset = painted_dataset(folder / "set", episodes=2, frames=2)
    return {name: saved_tiny(folder / name, dataset, seed=seed) for seed, name in enumerate("ab")}


def options(policies: dict[str, Path], **more: Any) -> Eval:
    named = tuple(f"{name}={folder}" for name, folder in policies.items())
    # The data that these policies were normalised with are of no robot.
    return Eval(**{"policies": named, "episodes": 3, "videos": 0, "anyway": True} | more)


@pytest.fixture(scope="module")
def evaluated(policies, tmp_path_factory) -> Path:
    """A finished evaluation; only to be read."""
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    options(policies, out=out, videos=1).run(FLAGS)
    return out


def plan_of(policies: dict[str, Path], out: Path, batch_size: int = 1) -> Plan:
    tasks = tasks_of(read_env(FLAGS).env)
    return Plan(out, policies, tuple(FLAGS), tasks, 3, SEED, batch_size, "stock", 1, 0, "cpu")


def episodes_in(out: Path) -> dict[str, Any]:
    found = EvalResults.read(out / "eval.json").policies
    return {name: [one.plain(exclude={"video"}) for one in of.episodes] for name, of in found.items()}


def test_results_say_what_was_evaluated_and_how(evaluated, policies):
    found = EvalResults.read(evaluated / "eval.json")
    assert list(found.tasks) == ["reach-v3", "push-v3"]
    assert found.tasks["reach-v3"] == "move the hand to the ball"
    assert (found.environment["type"], found.environment["max_steps"]) == ("sf_metaworld", 4)
    assert {"mujoco", "lerobot", "torch"} <= found.versions.keys()
    assert found.hardware["cores"]
    for name, of in found.policies.items():
        assert of.checkpoint == weights_of(policies[name])
        assert [(one.task, one.seed) for one in of.episodes] == [
            (task, SEED + i) for task in ("reach-v3", "push-v3") for i in range(3)
        ]
        assert all(one.steps == 4 for one in of.episodes)
    assert [(one.a, one.b) for one in found.pairings] == [("a", "b")]
    table = (evaluated / "eval.md").read_text()
    assert "| all | 0/6 (0 to 39 %) | 0/6 (0 to 39 %) |" in table
    assert found.command in table


def test_phases_that_an_environment_tells_are_in_the_table(evaluated):
    found = EvalResults.read(evaluated / "eval.json")
    assert "grasped" not in markdown(found)
    for i, one in enumerate(found.policies["b"].episodes):
        one.phases = {"reached": i < 4, "grasped": False}
    rows = [line for line in markdown(found).splitlines() if line.startswith(("| reached", "| grasped"))]
    assert rows == [
        "| reached | not evaluated | 4/6 (30 to 90 %) |",
        "| grasped | not evaluated | 0/6 (0 to 39 %) |",
    ]


def test_the_first_episodes_are_filmed(evaluated):
    films = {str(path.relative_to(evaluated)) for path in evaluated.rglob("*.mp4")}
    assert films == {f"videos/{name}/{task}/000000.mp4" for name in "ab" for task in ("reach-v3", "push-v3")}
    of = EvalResults.read(evaluated / "eval.json").policies["a"].episodes
    assert [getattr(one, "video", None) is not None for one in of] == [True, False, False] * 2


def test_an_episode_does_not_depend_on_those_before_it(evaluated, policies, tmp_path):
    """So neither on how episodes are shared over processes."""
    plan = plan_of(policies, tmp_path)
    jobs, rollouts = list(plan.jobs()), Rollouts(plan)
    random.Random(0).shuffle(jobs)
    try:
        for job in jobs:
            rollouts(job)
    finally:
        rollouts.close()
    for name, episodes in episodes_in(evaluated).items():
        paths = [plan.path_of(job) for job in plan.jobs() if job.policy == name]
        assert [json.loads(path.read_text())["episodes"][0] for path in paths] == episodes


@pytest.mark.system
def test_results_do_not_depend_on_the_number_of_processes(evaluated, policies, tmp_path):
    options(policies, out=tmp_path / "three", workers=3).run(FLAGS)
    assert episodes_in(tmp_path / "three") == episodes_in(evaluated)


def test_batches_are_consecutive_and_the_last_one_may_be_smaller(policies, tmp_path):
    plan = plan_of(policies, tmp_path, batch_size=2)
    of_one = [
        (job.first, job.count) for job in plan.jobs() if (job.policy, job.task.name) == ("a", "push-v3")
    ]
    assert of_one == [(0, 2), (2, 1)]
    rollouts, job = Rollouts(plan), list(plan.jobs())[1]
    rollouts(job)
    rollouts.close()
    kept = json.loads(plan.path_of(job).read_text())["episodes"]
    assert [one["seed"] for one in kept] == [SEED + 2]


def test_an_interrupted_evaluation_continues_with_what_is_missing(evaluated, policies, tmp_path, capsys):
    out = tmp_path / "eval"
    shutil.copytree(evaluated, out)
    (out / "eval.json").unlink()
    (out / "episodes" / "b" / "push-v3" / "000001.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("0*.json")}
    options(policies, out=out, videos=1).run(FLAGS)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert episodes_in(out) == episodes_in(evaluated)
    assert "12 of 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "flags", "differs"),
    [
        ({"episodes": 4}, FLAGS, "episodes: 3 there, 4 wanted"),
        ({"seed": 7}, FLAGS, "seed: 1000000 there, 7 wanted"),
        ({"batch_size": 3}, FLAGS, "batch_size: 1 there, 3 wanted"),
        ({}, [*FLAGS, "--env.camera=fixed"], "environment.camera: 'episode' there, 'fixed' wanted"),
        ({}, [*FLAGS, "--policy.n_action_steps=1"], "n_action_steps"),
    ],
)
def test_another_evaluation_is_refused_and_says_what_differs(evaluated, policies, changes, flags, differs):
    before = {path: path.read_bytes() for path in evaluated.rglob("*.json")}
    with pytest.raises(EvalError, match="already holds another evaluation") as refused:
        options(policies, out=evaluated, **changes).run(flags)
    assert differs in str(refused.value)
    assert {path: path.read_bytes() for path in evaluated.rglob("*.json")} == before


def test_other_weights_are_another_evaluation(evaluated, policies):
    with pytest.raises(EvalError, match=r"checkpoints\.a\.model\.safetensors"):
        options({"a": policies["b"], "b": policies["b"]}, out=evaluated).run(FLAGS)


def test_earlier_policies_stand_beside_later_ones(evaluated, policies, tmp_path):
    options({"c": policies["a"]}, out=tmp_path / "c", beside=(evaluated,)).run(FLAGS)
    found = EvalResults.read(tmp_path / "c" / "eval.json")
    assert list(found.policies) == ["c", "a", "b"]
    assert [one.b for one in found.pairings] == ["a", "b"]
    assert not found.warnings
    other = json.loads((evaluated / "eval.json").read_text())
    other["versions"]["mujoco"] = "3.3.7"
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "eval.json").write_text(json.dumps(other))
    options({"c": policies["a"]}, out=tmp_path / "c", beside=(tmp_path / "newer",)).run(FLAGS)
    found = EvalResults.read(tmp_path / "c" / "eval.json")
    assert "mujoco 3.3.0 here, 3.3.7 there" in found.warnings[0]
    with pytest.raises(EvalError, match="a policy called 'a'"):
        options({"a": policies["a"]}, out=tmp_path / "a", beside=(evaluated,)).run(FLAGS)
    with pytest.raises(EvalError, match="of other episodes"):
        options({"c": policies["a"]}, seed=5, out=tmp_path / "d", beside=(evaluated,)).run(FLAGS)


def test_what_the_guards_find_wrong_stops_before_the_first_rollout(policies, tmp_path, capsys):
    with pytest.raises(EvalError, match="Nothing was rolled out") as stopped:
        options(policies, anyway=False, out=tmp_path / "eval").run(FLAGS)
    assert not list((tmp_path / "eval").glob("episodes/*"))
    assert "state's range" in str(stopped.value)
    with pytest.raises(SystemExit) as ended:
        options(policies, check=True).run(FLAGS)
    assert ended.value.code == 1
    assert "wrong: a, state's range" in capsys.readouterr().out


@pytest.mark.parametrize("check", [True, False])
def test_weights_that_are_cut_off_are_found_before_anything_is_looked_at(policies, tmp_path, check):
    broken = Path(shutil.copytree(policies["a"], tmp_path / "broken"))
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpatialForcingError, match=r"cannot be loaded: model\.safetensors is cut off"):
        options({"a": broken}, check=check, out=tmp_path / "eval").run(FLAGS)
    assert not (tmp_path / "eval").exists()


def test_without_an_environment_the_one_that_is_taken_is_named(policies, capsys):
    for flags in (FLAGS, []):
        assert "No environment" not in capsys.readouterr().out
        with pytest.raises(SystemExit):  # they do not fit it
            options({"a": policies["a"]}, check=True).run(flags)
    assert "the embedded world, --env.type=sf_metaworld --env.task=reach-v3." in capsys.readouterr().out


def test_a_batch_that_takes_too_long_is_ended_and_no_process_stays(policies, tmp_path):
    with pytest.raises(EvalError, match=r"a on reach-v3, from episode 0 on, failed: .* no progress for 1 s"):
        options(policies, out=tmp_path / "eval", workers=2, patience=1.0).run(FLAGS)
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "eval").glob("episodes/*/*/*"))


# ---- fixed states ------------------------------------------------------------------------------------------


def test_more_episodes_than_states_are_refused():
    task = EvalTask("libero_object/3", "libero_object", 3, "pick it up", 50, 280)
    check_episodes((task,), 50)
    with pytest.raises(EvalError, match=r"libero_object/3 has 50 initial states, .*--episodes 50\."):
        check_episodes((task,), 51)


# ---- flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env.task=reach-v3"], "Say which environment"),
        (["--env.type=libera"], "Did you mean 'libero'"),
        ([*FLAGS, "--env.sise=28"], "Did you mean --env.size"),
        ([*FLAGS, "--eval.n_episodes=5"], "say --episodes before --"),
        ([*FLAGS, "--policy.path=a"], "say --policies before --"),
        ([*FLAGS, "--policy.n_action_steps", "5"], "written --policy.n_action_steps=<value>"),
    ],
)
def test_flags_that_cannot_be_say_why(flags, says):
    with pytest.raises(SpatialForcingError) as refused:
        read_env(flags)
    assert says in str(refused.value)


def test_rendering_that_is_known_to_differ_is_said():
    said = rendering_warning("libero", {"mujoco": "3.3.3"})
    assert said is not None
    assert "darker" in said
    assert rendering_warning("libero", {"mujoco": "3.3.2"}) is None
    assert rendering_warning("sf_metaworld", {"mujoco": "3.4.0"}) is None


def test_soft_resets_are_said_to_depend_on_the_order():
    from lerobot.envs.configs import LiberoEnv

    assert settings_warning(LiberoEnv()) is None
    assert "hard_reset" in str(settings_warning(LiberoEnv(hard_reset=False)))


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


# Where tests are started in the background of a shell, Ctrl-C is ignored, and by what they start, too.
WITH_CTRL_C = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from spatial_forcing.cli import main; main()"
)


@pytest.mark.system
def test_ctrl_c_ends_every_process_and_keeps_what_is_finished(policies, tmp_path):
    out = tmp_path / "eval"
    words = ["eval", "--checkpoint", str(policies["a"]), "--episodes", "500", "--workers", "2", "--anyway"]
    command = [sys.executable, "-c", WITH_CTRL_C, *words, "--out", str(out), "--", *FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while len(list(out.glob("episodes/*/*/*.json"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        workers = children(process.pid)
        assert len(workers) >= 2
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same command again to continue" in said
    deadline = time.monotonic() + 20  # multiprocessing's tracker ends a moment after the last of them
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert all(json.loads(path.read_text())["episodes"] for path in out.glob("episodes/*/*/*.json"))
