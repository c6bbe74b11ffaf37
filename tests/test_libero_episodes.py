"""LIBERO's episodes in evaluations: initial states by seed, and phases noted beside the environment."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from small_libero import Kitchen

from spatial_forcing.libero import episodes as episodes_module
from spatial_forcing.libero.episodes import LiberoEpisodes
from spatial_forcing.libero.expert import Expert
from spatial_forcing.libero.servo import OPEN
from spatial_forcing.report.page import write_report
from spatial_forcing.rollouts import kept_by


class KitchenEnv(gym.Env):
    """An environment of LeRobot's shape around scenes of made-up poses, a new one after every reset."""

    def __init__(self, slips: int = 0):
        self.slips, self.init_state_id, self.begun = slips, 7, []
        self._env = SimpleNamespace(env=None)

    def reset(self, *, seed=None, options=None):
        self.begun.append(self.init_state_id)
        self.init_state_id += 1
        self.kitchen = self._env.env = Kitchen("milk_1", seed or 0, self.slips)
        return {}, {"is_success": False}

    def step(self, action):
        done = self.kitchen.step(action)
        return {}, float(done), done, False, {"is_success": done}


@pytest.fixture
def recorder(monkeypatch):
    """Makes a recorder whose scenes are kitchens."""
    monkeypatch.setattr(episodes_module, "Scene", lambda kitchen: kitchen)
    return lambda first_seed=None, **options: LiberoEpisodes(KitchenEnv(**options), first_seed)


def solve(env: LiberoEpisodes) -> None:
    """Lets the expert act in the episode that has begun."""
    Expert(env.unwrapped.kitchen, lambda action: env.step(action)[2]).run()


def still(env: LiberoEpisodes, steps: int) -> None:
    for _ in range(steps):
        env.step(np.array([0, 0, 0, 0, 0, 0, OPEN], dtype=np.float32))


def test_an_episode_has_the_initial_state_of_its_seed_whatever_came_before(recorder):
    env, lerobots = recorder(first_seed=100), recorder()
    for one in (env, lerobots):
        for seed in (100, 103, None, 101):
            one.reset(seed=seed)
    assert [env.unwrapped.begun[i] for i in (0, 1, 3)] == [0, 3, 1]
    assert lerobots.unwrapped.begun == [7, 8, 9, 10]


def test_a_solved_episode_came_to_every_phase(recorder):
    env = recorder()
    env.reset(seed=7)
    solve(env)
    (record,) = kept_by(env)
    assert record["seed"] == 7
    assert record["success"]
    assert record["phases"] == {"reached": True, "grasped": True}
    assert record["hand_to_object"] == 0
    assert record["steps"] == len(env.unwrapped.kitchen.actions)


def test_who_slips_reaches_and_does_not_grasp_and_who_stays_does_neither(recorder):
    slippery = recorder(slips=99)
    slippery.reset(seed=0)
    solve(slippery)
    assert kept_by(slippery)[0]["phases"] == {"reached": True, "grasped": False}
    lazy = recorder()
    lazy.reset(seed=0)
    still(lazy, 3)
    (record,) = kept_by(lazy)
    assert record["phases"] == {"reached": False, "grasped": False}
    assert not record["success"]
    assert record["steps"] == 3
    assert record["hand_to_object"] > 0.1


def test_what_follows_an_episode_is_not_counted(recorder):
    """A vector environment resets an episode that is over, without a seed, and goes on stepping."""
    env = recorder()
    env.reset(seed=0)
    solve(env)
    before = dict(kept_by(env)[0])
    still(env, 2)
    env.reset()
    still(env, 5)
    assert kept_by(env) == [before]
    env.reset(seed=1)
    still(env, 4)
    assert [(one["seed"], one["steps"]) for one in kept_by(env)] == [(0, before["steps"]), (1, 4)]


def test_a_task_of_another_kind_has_no_record(recorder, monkeypatch):
    monkeypatch.setattr(Kitchen, "carried", None)
    env = recorder()
    env.reset(seed=0)
    solve(env)
    assert kept_by(env) == []


def test_reports_show_phases_as_rates_of_all_episodes(results, tmp_path):
    arms = list(results["arms"])
    for run in results["runs"]:
        for evaluation in run["evaluations"]:
            for i, one in enumerate(evaluation["episodes"]):
                one["phases"] = {"reached": i < 20, "grasped": run["arm"] == arms[0] and i < 3}
    page = write_report(results, tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "Phases that episodes came to" in page
    assert "20/25 (61 to 91 %)" in page
    rows = [line for line in text.splitlines() if line.startswith(f"| {arms[0]} | 20/25")]
    assert rows == [f"| {arms[0]} | 20/25 (61 to 91 %) | 3/25 (4 to 30 %) |"]
    header, first = (tmp_path / "tables" / "episodes.csv").read_text().splitlines()[:2]
    columns = dict(zip(header.split(","), first.split(","), strict=True))
    assert columns["reached"] == "True"
    assert "phases" not in columns


def test_reports_without_phases_say_nothing_of_them(results, tmp_path):
    page = write_report(results, tmp_path).read_text()
    assert "Phases" not in page
    assert "phases" not in (tmp_path / "report.md").read_text()
