"""Evaluation and its guards on LIBERO itself, where that is installed."""

import json
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libero_wander import CAMERAS, GRIPPER, libero_config, libero_dataset, wandering
from small_libero_policy import save_libero_policy

from spatial_forcing.evaluation.env_flags import EvalError, read_env
from spatial_forcing.evaluation.guards.compare import Case
from spatial_forcing.evaluation.guards.look import GUARDS
from spatial_forcing.evaluation.guards.shown import Shown, World, shown_by, worlds
from spatial_forcing.evaluation.guards.trained import STATE, Trained, trained_on
from spatial_forcing.evaluation.launch import roll_out_all
from spatial_forcing.evaluation.options import Eval
from spatial_forcing.evaluation.plan import Plan, tasks_of
from spatial_forcing.libero.expert import Expert
from spatial_forcing.libero.scene import Scene
from spatial_forcing.locks import FolderLock
from spatial_forcing.rollouts import kept_by, made_env
from spatial_forcing.saved_policy import SavedPolicy

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("libero") is None, reason="needs LIBERO: pip install 'lerobot[libero]'"),
    pytest.mark.timeout(580),
]
SIZE, SEED = 56, 1_000_000
FLAGS = ["--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0,3]"]
FLAGS += [f"--env.observation_{side}={SIZE}" for side in ("height", "width")]


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return libero_dataset(tmp_path_factory.mktemp("libero") / "demos", size=SIZE)


@pytest.fixture(scope="module")
def policy(demos, tmp_path_factory) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    stats = LeRobotDatasetMetadata("local/libero", root=demos).stats
    return save_libero_policy(tmp_path_factory.mktemp("policy") / "tiny", SIZE, CAMERAS, stats)


@pytest.fixture(scope="module")
def trained(policy, demos) -> Trained:
    return trained_on(SavedPolicy(policy), str(demos), [])


@pytest.fixture(scope="module")
def shown(policy, trained) -> Shown:
    config = libero_config(SIZE)
    return shown_by(config, tasks_of(config)[0], SEED, SavedPolicy(policy), trained)


def findings(policy: Path, trained: Trained, shown: Shown, **options: Any) -> Case:
    config = libero_config(SIZE, **options)
    case = Case("tiny", SavedPolicy(policy), config, tasks_of(config), trained, shown)
    for guard in GUARDS:
        guard(case)
    return case


def test_a_right_setting_is_silent(policy, trained, shown):
    case = findings(policy, trained, shown)
    # Of the two tasks only the first has demonstrations.
    assert [one.about for one in case.findings] == ["instructions"], [one.text for one in case.findings]
    assert {"orientation", "gripper", "control mode", "state's order", "replay", "rotation"} <= set(
        case.agreed
    )


def test_the_label_of_public_data_sets_is_no_fault(policy, trained, shown):
    labelled = deepcopy(trained)
    labelled.fps = 10
    assert "control frequency" in findings(policy, labelled, shown).agreed


def with_actions(trained: Trained, change: Callable[[np.ndarray], np.ndarray]) -> None:
    trained.episodes = [(states, change(actions.copy())) for states, actions in trained.episodes]


def opposite(actions_TA: np.ndarray) -> np.ndarray:
    actions_TA[:, GRIPPER] *= -1
    return actions_TA


def zero_one(actions_TA: np.ndarray) -> np.ndarray:
    actions_TA[:, GRIPPER] = (actions_TA[:, GRIPPER] + 1) / 2
    return actions_TA


def quaternions(trained: Trained) -> None:
    """x, y, z, a quaternion, one finger: eight numbers as well."""
    turn = np.array([0.0, 1.0, 0.0, 0.0])
    trained.episodes = [
        (np.concatenate([s[:, :3], np.broadcast_to(turn, (len(s), 4)), s[:, 6:7]], axis=1), a)
        for s, a in trained.episodes
    ]


LOOKED_AT = {
    "as the simulator gives them": (
        lambda t: t.images.update({c: i.flip((-2, -1)) for c, i in t.images.items()}),
        "orientation",
    ),
    "upright and not mirrored": (
        lambda t: t.images.update({c: i.flip(-1) for c, i in t.images.items()}),
        "orientation",
    ),
    "swapped cameras": (
        lambda t: t.images.update({CAMERAS[0]: t.images[CAMERAS[1]], CAMERAS[1]: t.images[CAMERAS[0]]}),
        "cameras' order",
    ),
    "gripper's sign": (lambda t: with_actions(t, opposite), "gripper"),
    "gripper of 0 and 1": (lambda t: with_actions(t, zero_one), "gripper"),
    "quaternion": (quaternions, "rotation"),
    "another frequency": (lambda t: setattr(t, "fps", 5), "control frequency"),
    "other size": (lambda t: t.sizes.update(dict.fromkeys(CAMERAS, (256, 256))), "resolution"),
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_faults_that_a_look_shows(policy, trained, shown, name):
    alter, about = LOOKED_AT[name]
    broken = deepcopy(trained)
    alter(broken)
    case = findings(policy, broken, shown)
    assert about in [one.about for one in case.findings], [one.text for one in case.findings]


PLAYED = {
    "actions a fifth": (lambda a: a * np.array([0.2] * 6 + [1]), {}, "replay"),
    "x reversed": (lambda a: a * np.array([-1] + [1] * 6), {}, "replay"),
    "control mode": (lambda a: a, {"control_mode": "absolute"}, "control mode"),
}


@pytest.mark.parametrize("name", PLAYED)
def test_faults_that_playing_demonstrations_shows(policy, trained, name):
    change, options, about = PLAYED[name]
    broken = deepcopy(trained)
    with_actions(broken, change)
    config = libero_config(SIZE, **options)
    seen = shown_by(config, tasks_of(config)[0], SEED, SavedPolicy(policy), broken)
    case = findings(policy, broken, seen, **options)
    assert about in [one.about for one in case.findings], [one.text for one in case.findings]


def test_more_episodes_than_states_are_refused(policy):
    with pytest.raises(EvalError, match=r"libero_object/0 has 50 initial states, .*--episodes 50"):
        Eval(checkpoint=policy, episodes=51).run(FLAGS)


def rolled(policy: Path, out: Path, workers: int) -> list[dict[str, Any]]:
    """Short episodes of two tasks, without guards; the last ones first."""
    flags = [*FLAGS, "--env.episode_length=8"]
    tasks = tasks_of(read_env(flags).env)
    plan = Plan(out, {"tiny": policy}, tuple(flags), tasks, 2, SEED, 1, "cheap", 1, 0, "cpu")
    with FolderLock(out) as lock:
        jobs = list(plan.jobs())[::-1]
        roll_out_all(plan, jobs, workers=workers, patience=280, lock=lock, advance=lambda count: None)
    return [json.loads(plan.path_of(job).read_text())["episodes"][0] for job in plan.jobs()]


def test_an_episode_begins_and_goes_on_alike_whatever_came_before(policy):
    """To the last bit: poses of fixtures, states, both images."""
    config = libero_config(SIZE)
    actions = wandering(5, seed=3)

    def played(world: World) -> list[Any]:
        seen = [world.reset(SEED + 2), *(world.step(action)[0] for action in actions)]
        return [one[key] for one in seen for key in (STATE, *CAMERAS)]

    with worlds(config, tasks_of(config)[0], SavedPolicy(policy), SEED) as world:
        first = played(world)
        world.reset(SEED)
        world.step(actions[0])
        world.reset(SEED + 1)
        again = played(world)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_episodes_are_the_same_in_any_order_and_number_of_processes(policy, tmp_path):
    one, two = (rolled(policy, tmp_path / str(workers), workers) for workers in (1, 2))
    assert one == two
    assert [(e["task"], e["initial_state"], e["steps"]) for e in one] == [
        (f"libero_object/{task}", state, 8) for task in (0, 3) for state in (0, 1)
    ]


def test_the_environment_is_read_by_lerobots_parser():
    found = read_env([*FLAGS, "--env.control_mode=absolute", "--policy.n_action_steps=2"])
    assert (found.env.task_ids, found.env.control_mode) == ([0, 3], "absolute")
    assert found.overrides == ("--n_action_steps=2",)


@pytest.mark.parametrize("acts", [True, False])
def test_phases_are_noted_beside_lerobots_environment(acts):
    """The expert reaches, grasps and solves; an arm that stands still does nothing of it."""
    from lerobot.envs import close_envs

    envs = made_env(libero_config(SIZE), 1)
    vector = envs["libero_object"][3]
    vector.reset(seed=[SEED])
    scene = Scene(vector.envs[0].unwrapped._env.env)
    before = scene.position_3(scene.carried)

    def step(action_7: np.ndarray) -> bool:
        return bool(vector.step(action_7[None])[2][0])

    if acts:
        steps = Expert(scene, step).run().steps
    else:
        steps = 4
        for _ in range(steps):
            step(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32))
        np.testing.assert_allclose(scene.position_3(scene.carried), before, atol=2e-3)
    (record,) = kept_by(vector.envs[0])
    close_envs(envs)
    assert record["phases"] == {"reached": acts, "grasped": acts}
    assert (record["seed"], record["success"], record["steps"]) == (SEED, acts, steps)
    assert record["hand_to_object"] == 0 if acts else record["hand_to_object"] > 0.05
