"""What an environment shows at the start of its episodes, and how it answers to recorded actions.

All through the processors that a rollout uses, under the policy's names of observations.

Shapes: N looks, T steps, D numbers of a state, A of an action, h w of a thumbnail.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.evaluation.guards.trained import STATE, GuardedPolicy, Trained, thumbnail
from spatial_forcing.evaluation.known import KNOWN
from spatial_forcing.evaluation.plan import EvalTask
from spatial_forcing.rollouts import made_env

LOOKS, OF_STATES = 4, 3  # episodes whose first observation is looked at; with a list of initial states
REPLAYED = 12  # steps of a demonstration
HELD = 12  # steps that a gripper action is held


@dataclass
class Shown:
    """Observations and answers of an environment.

    Attributes:
        images: mean thumbnail_3hw of the first observations, by camera; ``sizes`` their height and width.
        states_ND: first states; None if there are none.
        low_A, high_A: limits of actions.
        replays: (environment's states_TD, data set's states_TD) under the same actions.
        gripper_D: change of the state while the gripper action was held at its highest, less that at its
            lowest; None if that was not tried.
    """

    images: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    states_ND: np.ndarray | None = None
    low_A: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high_A: np.ndarray = field(default_factory=lambda: np.zeros(0))
    replays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    gripper_D: np.ndarray | None = None


class World:
    """A vector environment of one world, seen through the processors of a rollout."""

    def __init__(self, env: Any, config: Any, policy: GuardedPolicy):
        from lerobot.envs import make_env_pre_post_processors

        self.env, self.rename = env, policy.rename_map
        self.preprocess, postprocess = make_env_pre_post_processors(config, policy.config)
        # Recorded actions are the environment's own only where nothing translates a policy's.
        self.plain = not getattr(postprocess, "steps", ())

    def reset(self, seed: int) -> dict[str, Any]:
        """The first observation of the episode of a seed."""
        from lerobot.envs.utils import NEW_ROLLOUT_OPTION

        return self._seen(self.env.reset(seed=[seed], options={NEW_ROLLOUT_OPTION: True})[0])

    def step(self, action_A: np.ndarray) -> tuple[dict[str, Any], bool]:
        """The next observation, and whether the episode is over."""
        observed, _, ended, cut, _ = self.env.step(np.asarray(action_A, dtype=np.float32)[None])
        return self._seen(observed), bool(ended[0] or cut[0])

    def _seen(self, observed: Mapping[str, Any]) -> dict[str, Any]:
        from lerobot.envs import preprocess_observation

        seen: dict[str, Any] = {**preprocess_observation(dict(observed)), "task": [""]}
        return {self.rename.get(str(key), str(key)): value for key, value in self.preprocess(seen).items()}


def state_of(seen: Mapping[str, Any]) -> np.ndarray | None:
    """state_D of an observation."""
    return seen[STATE][0].double().cpu().numpy().reshape(-1) if STATE in seen else None


@contextmanager
def worlds(config: Any, task: EvalTask, policy: GuardedPolicy, seed: int) -> Iterator[World]:
    """The world of a task, closed in the end; ``seed`` is that of the first of its fixed episodes."""
    from lerobot.envs import close_envs

    with redirect_stdout(StringIO()):
        envs = made_env(config, 1, seed)
    try:
        yield World(envs[task.group][task.number], config, policy)
    finally:
        close_envs(envs)


def shown_by(config: Any, task: EvalTask, seed: int, policy: GuardedPolicy, trained: Trained) -> Shown:
    """Looks at a few episodes of a task, and replays the beginnings of demonstrations in them.

    Args:
        config: of the environment.
        task: of it.
        seed: of the first episode.
        policy: whose processors and names are used.
        trained: with the demonstrations.
    """
    found, images, states = Shown(), {}, []
    with worlds(config, task, policy, seed) as world:
        space = world.env.single_action_space
        found.low_A, found.high_A = (np.asarray(of, np.float64).reshape(-1) for of in (space.low, space.high))
        for look in range(LOOKS if task.states is None else min(OF_STATES, task.states)):
            seen = world.reset(seed + look)
            for key, value in seen.items():
                if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3:
                    images.setdefault(key, []).append(thumbnail(value[0].cpu()))
                    found.sizes[key] = int(value.shape[2]), int(value.shape[3])
            if (state := state_of(seen)) is not None:
                states.append(state)
            if world.plain and look < len(trained.episodes):
                _replay(world, state, *trained.episodes[look], found)
        found.gripper_D = _gripper(world, config, seed) if world.plain else None
    found.images = {key: torch.stack(of).mean(0) for key, of in images.items()}
    found.states_ND = np.stack(states) if states else None
    return found


def _replay(
    world: World, state_D: np.ndarray | None, states_TD: np.ndarray, actions_TA: np.ndarray, found: Shown
) -> None:
    """Plays the first actions of a demonstration, and notes what both states did."""
    if state_D is None or states_TD.shape[1] != len(state_D) or actions_TA.shape[1] != len(found.low_A):
        return
    track, over = [state_D], False
    for action_A in actions_TA[: min(REPLAYED, len(actions_TA) - 1)]:
        if over:
            break
        seen, over = world.step(action_A)
        state = state_of(seen)
        assert state is not None
        track.append(state)
    found.replays.append((np.stack(track), states_TD[: len(track)]))


def _gripper(world: World, config: Any, seed: int) -> np.ndarray | None:
    """What closing and opening do to the state, where it is known that other zeros stand still."""
    known = KNOWN.get(config.type)
    if known is None or not (known.relative or getattr(config, "control_mode", "") == "relative"):
        return None
    if len(known.action) != len(world.env.single_action_space.low):
        return None
    states = [state_of(world.reset(seed))]
    for value in (1.0, -1.0):
        action = np.zeros(len(known.action))
        action[known.gripper] = value
        for _ in range(HELD):
            seen, over = world.step(action)
            if over:
                return None
        states.append(state_of(seen))
    before, closed, opened = states
    return None if before is None else (closed - before) - (opened - closed)  # type: ignore[operator]
