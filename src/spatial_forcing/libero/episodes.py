"""LeRobot's LIBERO environment for evaluations: initial states by seed, and how far each episode got.

Whether the gripper reached the object, and whether it grasped it, is read from the simulator; policies see
nothing of it. A policy of few steps solves nothing, and may still reach.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from spatial_forcing.libero.boxes import clearance
from spatial_forcing.libero.install import not_made
from spatial_forcing.libero.scene import Scene

REACHED = 0.02  # metres from the gripper to the object's collision boxes, at most
GRASPED = 0.03  # metres by which the object has risen


class LiberoEpisodes(gym.Wrapper):
    """LeRobot's ``LiberoEnv`` with episodes that their seeds decide, and a record of each.

    LeRobot goes on through a task's initial states with every reset, whoever asked for it: after episodes of
    other lengths two policies would meet other states.

    Args:
        env: LeRobot's.
        first_seed: of the episode that begins from initial state 0; seed + i begins from state i. None to
            leave the states to LeRobot.

    Attributes:
        episodes: of the episodes that were begun with a seed, in tasks that bring one object somewhere:
            seed, success, steps; ``hand_to_object``, the shortest distance from the gripper to the object
            (metres); ``phases``, by name whether the episode came to them.
    """

    def __init__(self, env: gym.Env, first_seed: int | None = None):
        super().__init__(env)
        self.first_seed = first_seed
        self.episodes: list[dict[str, Any]] = []
        self._watched: _Watched | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode, and its record if it has a seed."""
        inner: Any = self.unwrapped
        if seed is not None and self.first_seed is not None:
            inner.init_state_id = seed - self.first_seed
        try:
            found = self.env.reset(seed=seed, options=options)
        except (OSError, ValueError) as error:  # files of the scene that are missing or damaged
            suite = Path(inner._task_bddl_file).parent.name
            raise not_made(f"{inner.task} ({suite})", suite, error) from error
        self._watched = None
        # Vector environments reset what is over to something that nobody asked for, without a seed.
        if seed is not None:
            scene = Scene(inner._env.env)  # made anew by every reset
            if (name := scene.carried) is not None:
                self._watched = _Watched(scene, name, seed)
                self.episodes.append(self._watched.record)
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Does an action, and notes what came of it."""
        found = self.env.step(action)
        if self._watched is not None:
            self._watched.note(bool(found[-1]["is_success"]))
            if found[2]:
                self._watched = None
        return found


class _Watched:
    """The record of an episode that goes on."""

    def __init__(self, scene: Scene, name: str, seed: int):
        self._scene, self._name = scene, name
        self._begun = scene.position_3(name)[2]
        self.record: dict[str, Any] = {"seed": seed, "success": False, "steps": 0}
        self.record |= {"hand_to_object": self._distance, "phases": {"reached": False, "grasped": False}}

    @property
    def _distance(self) -> float:
        return clearance(self._scene.boxes(self._name), self._scene.hand.position_3)

    def note(self, success: bool) -> None:
        record, phases = self.record, self.record["phases"]
        record["steps"] += 1
        record["success"] |= success
        record["hand_to_object"] = min(record["hand_to_object"], self._distance)
        phases["reached"] |= record["hand_to_object"] <= REACHED
        risen = self._scene.position_3(self._name)[2] - self._begun
        phases["grasped"] |= bool(risen >= GRASPED)


def with_episodes(envs: Mapping[str, Mapping[int, Any]], first_seed: int | None) -> None:
    """Puts :class:`LiberoEpisodes` around every environment of LeRobot's vector environments of LIBERO."""
    for by_task in envs.values():
        for vector in by_task.values():
            vector.envs = [LiberoEpisodes(env, first_seed) for env in vector.envs]
