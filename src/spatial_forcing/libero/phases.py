"""How far an episode of LIBERO got: whether the gripper reached the object, and whether it grasped it.

Read from the simulator beside LeRobot's environment; policies see nothing of it. A policy of few steps solves
nothing, and may still reach.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym

from spatial_forcing.libero.boxes import clearance
from spatial_forcing.libero.scene import Scene

REACHED = 0.02  # metres from the gripper to the object's collision boxes, at most
GRASPED = 0.03  # metres by which the object has risen


class PhaseRecorder(gym.Wrapper):
    """LeRobot's LIBERO environment with a record of every episode, in tasks that bring one object somewhere.

    Args:
        env: LeRobot's ``LiberoEnv``.

    Attributes:
        episodes: of the episodes that were begun with a seed: seed, success, steps; ``hand_to_object``, the
            shortest distance from the gripper to the object (metres); ``phases``, by name whether the episode
            came to them. None for tasks of another kind.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.episodes: list[dict[str, Any]] = []
        self._watched: _Watched | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode, and its record if it has a seed."""
        found = self.env.reset(seed=seed, options=options)
        scene = Scene(self.unwrapped._env.env)  # type: ignore[attr-defined]  # made anew by every reset
        self._watched = None
        # Vector environments reset what is over to something that nobody asked for, without a seed.
        if seed is not None and scene.carried is not None:
            self._watched = _Watched(scene, scene.carried, seed)
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


def record_phases(envs: Mapping[str, Mapping[int, Any]]) -> None:
    """Makes LeRobot's vector environments of LIBERO, by suite and task, keep records of their episodes."""
    for vector in _vectors(envs):
        vector.envs = [PhaseRecorder(env) for env in vector.envs]


def _vectors(envs: Mapping[str, Mapping[int, Any]]) -> Iterator[Any]:
    for by_task in envs.values():
        yield from by_task.values()
