"""Guards of an evaluation: silent on a right setting, and every fault that is put into it is found."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_depth import saved_tiny
from small_policies import CAMERAS, LEFT, RIGHT

from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.evaluation.guards.cameras import _order, mistaken
from spatial_forcing.evaluation.guards.compare import Case
from spatial_forcing.evaluation.guards.look import GUARDS, check_findings
from spatial_forcing.evaluation.guards.shown import shown_by
from spatial_forcing.evaluation.guards.trained import ACTION, STATE, Trained, trained_on
from spatial_forcing.evaluation.plan import tasks_of
from spatial_forcing.saved_policy import SavedPolicy
from spatial_forcing.sim.collect import DemoSpec, collect
from spatial_forcing.sim.env import SimEnv, SimEnvConfig

SIZE, SEED = 28, 1_000_000
X, Y, GRIPPER = 0, 1, 3


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return collect(DemoSpec(episodes=8, size=SIZE), tmp_path_factory.mktemp("guards") / "demos", workers=1)


@pytest.fixture(scope="module")
def policy(demos, tmp_path_factory) -> SavedPolicy:
    return SavedPolicy(saved_tiny(tmp_path_factory.mktemp("policy") / "tiny", demos))


@pytest.fixture(scope="module")
def trained(policy, demos) -> Trained:
    """The demonstrations, and two more episodes in which the gripper moves, as it does not when reaching."""
    found, env = trained_on(policy, str(demos), []), SimEnv(size=SIZE, look_every=1000)
    for seed in (1, 2):
        states, actions = [env.reset(seed=seed)[0]["agent_pos"]], []
        for step in range(48):
            actions.append(np.array([0, 0, 0, 1 if step % 24 < 12 else -1], dtype=np.float32))
            states.append(env.step(actions[-1])[0]["agent_pos"])
        found.episodes.append((np.stack(states[:-1]), np.stack(actions)))
    for key, at in ((STATE, 0), (ACTION, 1)):
        values = np.concatenate([episode[at] for episode in found.episodes])
        found.stats[key] |= {"min": values.min(0), "max": values.max(0)}
    return found


def found_in(policy: SavedPolicy, trained: Trained, seed: int = SEED, **env: Any) -> Case:
    """What the guards say of a policy in the embedded world."""
    config = SimEnvConfig(**{"size": SIZE, "look_every": 1000} | env)
    tasks = tasks_of(config)
    case = Case("tiny", policy, config, tasks, trained, shown_by(config, tasks[0], seed, policy, trained))
    for guard in GUARDS:
        guard(case)
    return case


@pytest.mark.parametrize("seed", [SEED, SEED + 100, SEED + 200])
def test_a_right_setting_is_silent(policy, trained, seed):
    case = found_in(policy, trained, seed)
    assert [one.text for one in case.findings] == []
    assert {"cameras", "orientation", "state's order", "gripper", "control mode", "replay"} <= set(
        case.agreed
    )


def test_a_number_that_stood_still_in_training_and_moves_here_is_wrong(policy, trained, demos):
    """LeRobot's own processors divide it by 1e-8; those of the built-in policy leave it as it is."""
    found = found_in(policy, trained)
    assert "state's constants" in found.agreed
    still = SavedPolicy(policy.folder)
    (step,) = [one for one in still.preprocess.steps if getattr(one, "stats", None)]
    step.stats[STATE]["std"] = step.stats[STATE]["std"] * np.array([1.0, 1.0, 1.0, 0.0])
    case = found_in(still, trained)
    (one,) = [one for one in case.findings if one.about == "state's constants"]
    assert one.kind == "odd", "it moves with the gripper's action alone"
    moving = deepcopy(trained)
    moving.episodes.reverse()  # those in which the gripper moves are played first
    (one,) = [one for one in found_in(still, moving).findings if one.about == "state's constants"]
    assert one.kind == "wrong"
    assert f"number {GRIPPER} of {STATE}" in one.text


def scaled(trained: Trained, at: int, factor: Any) -> None:
    """Multiplies states (at 0) or actions (at 1) of all that is known of the data."""
    factor_D = np.broadcast_to(np.asarray(factor, dtype=float), trained.episodes[0][at].shape[1:])
    trained.episodes = [
        (states * factor_D, actions) if at == 0 else (states, actions * factor_D)
        for states, actions in trained.episodes
    ]
    ends = [trained.stats[(STATE, ACTION)[at]][name] * factor_D for name in ("min", "max")]
    trained.stats[(STATE, ACTION)[at]] |= {"min": np.minimum(*ends), "max": np.maximum(*ends)}


def reordered(trained: Trained, order: list[int]) -> None:
    """Puts the numbers of the state into another order."""
    trained.episodes = [(states[:, order], actions) for states, actions in trained.episodes]
    trained.stats[STATE] = {
        name: value[order] if len(value) == 4 else value for name, value in trained.stats[STATE].items()
    }


def flipped(trained: Trained, *axes: int) -> None:
    trained.images = {camera: image.flip(axes) for camera, image in trained.images.items()}


def to_poses(trained: Trained) -> None:
    """Actions that are the position to go to."""
    changed = []
    for states, actions in trained.episodes:
        after = np.concatenate([states[1:, :3], states[-1:, :3]])
        changed.append((states, np.concatenate([after, actions[:, 3:]], axis=1)))
    trained.episodes = changed


def quaternions(trained: Trained) -> None:
    turn = np.array([0.5, 0.5, 0.5, 0.5])
    trained.episodes = [(np.broadcast_to(turn, s.shape).copy(), a) for s, a in trained.episodes]


BROKEN: list[tuple[str, Callable[[Trained], Any], str]] = [
    ("upside down", lambda t: flipped(t, -2), "orientation"),
    ("mirrored", lambda t: flipped(t, -1), "orientation"),
    ("turned by 180 degrees", lambda t: flipped(t, -2, -1), "orientation"),
    ("one camera upside down", lambda t: t.images.update({RIGHT: t.images[RIGHT].flip(-2)}), "orientation"),
    ("cameras swapped", lambda t: t.images.update({a: t.images[b] for a, b in _swapped()}), "cameras' order"),
    ("actions a tenth", lambda t: scaled(t, 1, [0.1, 0.1, 0.1, 1]), "replay"),
    ("actions tenfold", lambda t: scaled(t, 1, [10, 10, 10, 1]), "actions' range"),
    ("one action reversed", lambda t: scaled(t, 1, [-1, 1, 1, 1]), "replay"),
    ("gripper reversed", lambda t: scaled(t, 1, [1, 1, 1, -1]), "gripper"),
    ("states in millimetres", lambda t: scaled(t, 0, [1000, 1000, 1000, 1]), "state's range"),
    ("x and y exchanged", lambda t: reordered(t, [1, 0, 2, 3]), "state's order"),
    ("gripper first", lambda t: reordered(t, [3, 0, 1, 2]), "state's range"),
    ("poses as actions", to_poses, "control mode"),
    ("quaternions", quaternions, "rotation"),
    ("recorded at 10 Hz", lambda t: setattr(t, "fps", 10), "control frequency"),
    ("images of twice the size", lambda t: t.sizes.update(dict.fromkeys(CAMERAS, (56, 56))), "resolution"),
    ("images of another aspect", lambda t: t.sizes.update(dict.fromkeys(CAMERAS, (28, 56))), "aspect"),
    ("another rendering", lambda t: setattr(t, "rendering", "cheap"), "rendering"),
    ("darker images", lambda t: t.images.update({c: i * 0.5 for c, i in t.images.items()}), "brightness"),
    ("other instructions", lambda t: setattr(t, "instructions", ["OpenDrawer"]), "instructions"),
]
ODD = ("resolution", "brightness", "instructions")


def _swapped() -> list[tuple[str, str]]:
    return [(LEFT, RIGHT), (RIGHT, LEFT)]


@pytest.mark.parametrize(("alter", "about"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_fault_is_found_and_named(policy, trained, alter, about):
    broken = deepcopy(trained)
    if about == "cameras' order":
        broken.images = {LEFT: trained.images[RIGHT], RIGHT: trained.images[LEFT]}
    else:
        alter(broken)
    case = found_in(policy, broken)
    named = {one.about: one for one in case.findings}
    assert about in named, [one.text for one in case.findings]
    one = named[about]
    assert one.kind == ("odd" if about in ODD else "wrong")
    assert one.expected
    assert one.found
    assert one.advice
    assert about not in case.agreed


def test_cameras_that_the_data_themselves_mix_up_are_odd_at_most(policy, trained):
    """As where they move from episode to episode: means over a few then look swapped by chance."""
    mixed = deepcopy(trained)
    assert mistaken(mixed.firsts, lambda a, b: _order(list(CAMERAS), a, b) != tuple(CAMERAS)) == 0
    even = torch.arange(len(mixed.firsts[LEFT])).remainder(2).bool()[:, None, None, None]
    left, right = trained.firsts[LEFT], trained.firsts[RIGHT]
    mixed.firsts = {LEFT: left.where(even, right), RIGHT: right.where(even, left)}
    mixed.images = {LEFT: trained.images[RIGHT], RIGHT: trained.images[LEFT]}
    (one,) = [one for one in found_in(policy, mixed).findings if one.about == "cameras' order"]
    assert one.kind == "odd"
    assert re.search(r"It may be chance: \d+ of 50 draws of 4 of the data set's own episodes", one.advice)


def test_of_poses_as_actions_nothing_else_is_said_that_follows_from_it(policy, trained):
    """Advice on the state's order would break data that are right."""
    broken = deepcopy(trained)
    to_poses(broken)
    assert not {one.about for one in found_in(policy, broken).findings} & {"state's order", "replay"}


def test_two_gripper_directions_with_other_signs_do_not_confuse_the_rest(policy, trained):
    broken = deepcopy(trained)
    scaled(broken, 1, [1, 1, 1, -1])
    assert {one.about for one in found_in(policy, broken).findings} == {"gripper"}


def test_cameras_that_are_not_there_are_named_with_how_to_rename(demos, trained, tmp_path):
    top = "observation.images.top"
    policy = SavedPolicy(saved_tiny(tmp_path / "tiny", demos, cameras=(top, RIGHT)))
    case = found_in(policy, trained)
    text = {one.about: one.text for one in case.findings}["cameras"]
    assert f'--rename_map=\'{{"{LEFT}": "{top}"}}\'' in text
    renamed = SavedPolicy(policy.folder, rename_map={LEFT: top})
    assert "cameras" in found_in(renamed, trained).agreed


def test_without_a_data_set_saved_statistics_are_compared(policy, trained):
    known = trained_on(policy, None, [])
    assert "does not note its training data" in known.missing
    assert "Give --dataset" in known.missing
    case = found_in(policy, known)
    assert not case.findings
    assert {"state's range", "actions' range"} <= set(case.agreed)
    assert not {"orientation", "gripper", "replay"} & set(case.agreed)


def test_what_a_few_demonstrations_look_like_is_odd_at_most(policy, trained):
    few = deepcopy(trained)
    few.count = 3
    flipped(few, -2)
    findings = found_in(policy, few).findings
    assert {(one.kind, one.about) for one in findings} == {("odd", "orientation")}
    assert "3 episodes: it may be chance" in findings[0].advice


def test_what_is_wrong_stops_and_what_is_odd_does_not(policy, trained):
    broken = deepcopy(trained)
    broken.instructions = ["OpenDrawer"]
    check_findings(found_in(policy, broken).findings)
    broken.fps = 10
    findings = found_in(policy, broken).findings
    with pytest.raises(EvalError, match=r"^One thing would make .*--anyway") as stopped:
        check_findings(findings)
    assert "expected 10 steps per second" in str(stopped.value)
