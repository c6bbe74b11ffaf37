"""The embedded world as a LeRobot environment: `lerobot-eval --env.type=sf_metaworld --env.task=reach-v3`.

Observations become, after LeRobot's `preprocess_observation`, exactly the keys of the demonstrations: two
images, the hand's state, and the privileged state. An episode is a function of the environment's options
and its seed. Seeds start their own stream of random numbers (`experts.EVALUATIONS`), so that none of them
repeats a demonstration.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.guard import said_last
from spatial_forcing.sim.camera import Jitter, stack_matrices
from spatial_forcing.sim.dataset import FPS, POINTS, VIEWS, points_width
from spatial_forcing.sim.experts import EVALUATIONS, camera_stream
from spatial_forcing.sim.points import cell_points
from spatial_forcing.sim.spec import CAMERA_MODES
from spatial_forcing.sim.tasks import TASKS, task_record
from spatial_forcing.sim.world import World

LEAST_REACH = 0.15
"""Minimum distance of hand and goal at the start of reach-v3, metres: no episode is won by standing still."""

ENV_CAMERA_MODES = (*CAMERA_MODES, "beyond")
_STARTS = ("random-hand", "initial")
_ATTEMPTS = 100


class SimEnv(gym.Env):
    """One Meta-World task with two cameras; ends on success.

    Args:
        task: Meta-World task.
        size: height and width of images.
        camera: a new random pose every "frame" or "episode", or "fixed"; or "beyond", a pose for each
            episode outside the range of the demonstrations' cameras.
        start: "random-hand" or "initial", as in `World.reset`.
        success_radius: hand to goal in reach-v3, metres; other tasks use Meta-World's own criterion.
        max_steps: length of an episode; None for the task's own.
        look_every: draw new images on every so many steps only, and hold them in between. For a policy that
            plans this many actions at a time the result is the same, in a fraction of the time; 1 is always
            right.
        points: cells per side of each view whose 3D points are in the observation, in metres in the robot's
            frame, for an oracle policy; 0 for none.

    Attributes:
        episodes: a record of every finished episode: seed, success, final_distance and closest_distance
            (metres, see `World.distance`), steps.

    Raises:
        UnknownNameError: an unknown task, camera mode or start.
        SpatialForcingError: an invalid number, or a step after the end of an episode.
        RenderingError: this machine cannot render (at the first reset); says what to install.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (gymnasium's contract)

    def __init__(
        self,
        task: str = "reach-v3",
        size: int = 112,
        camera: str = "episode",
        start: str = "random-hand",
        success_radius: float = 0.05,
        max_steps: int | None = None,
        look_every: int = 1,
        points: int = 0,
    ):
        record = task_record(task)
        if camera not in ENV_CAMERA_MODES:
            raise UnknownNameError("camera mode", camera, ENV_CAMERA_MODES)
        if start not in _STARTS:
            raise UnknownNameError("start", start, _STARTS)
        numbers = (("size", size, 16), ("max_steps", max_steps, 1), ("look_every", look_every, 1))
        numbers += (("points", points, 0),)
        for name, value, least in numbers:
            if value is not None and value < least:
                raise SpatialForcingError(f"{name} must be at least {least}; got {value}.")
        self.task, self.task_description, self.render_mode = task, record.instruction, "rgb_array"
        self.size, self.camera, self.start, self.success_radius = size, camera, start, success_radius
        self._max_episode_steps, self.look_every = max_steps or record.max_steps, look_every
        self.points = points
        self.episodes: list[dict[str, Any]] = []
        self._world: World | None = None
        image = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        vectors = {"agent_pos": 4, "environment_state": 6}
        if points:
            vectors["points"] = points_width(points)
        spaces = {key: gym.spaces.Box(-np.inf, np.inf, (n,), np.float32) for key, n in vectors.items()}
        self.observation_space = gym.spaces.Dict(
            {"pixels": gym.spaces.Dict(dict.fromkeys(VIEWS, image)), **spaces}
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    @property
    def world(self) -> World:
        """The simulator; made when first used, so that a worker process makes its own."""
        if self._world is None:
            self._world = World(self.task, self.size)
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins the episode of `seed`, or of the next seed in the sequence that the last one started."""
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else seed
        world = self.world
        for attempt in range(_ATTEMPTS):
            key = [EVALUATIONS, self._seed, sorted(TASKS).index(self.task), attempt]
            world_seed, camera_seed = np.random.SeedSequence(key).spawn(2)
            world.reset(world_seed, self.start)
            if self.task != "reach-v3" or world.distance >= LEAST_REACH:
                break
        self._cameras = camera_stream(self.camera, Jitter(), np.random.default_rng(camera_seed))
        self._steps, self._closest, self._over = 0, world.distance, False
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Runs one control step; `info["is_success"]` says whether the task is done."""
        if self._over:
            raise SpatialForcingError("The episode is over: reset the environment before the next step.")
        world = self.world
        world.step(action)
        self._steps += 1
        distance, success = world.distance, world.success(self.success_radius)
        self._closest = min(self._closest, distance)
        truncated = not success and self._steps >= self._max_episode_steps
        self._over = success or truncated
        if self._over:
            self.episodes.append(
                {
                    "seed": self._seed,
                    "success": success,
                    "final_distance": distance,
                    "closest_distance": self._closest,
                    "steps": self._steps,
                }
            )
        return self._observe(), float(success), success, truncated, {"is_success": success}

    def _observe(self) -> dict[str, Any]:
        if self._steps % self.look_every == 0:
            self._pair = next(self._cameras)
            self._draw()
        seen = {
            "pixels": dict(zip(VIEWS, self._images, strict=True)),
            "agent_pos": self.world.state,
            "environment_state": self.world.environment_state,
        }
        return seen | {"points": self._shown_points} if self.points else seen

    def _draw(self) -> None:
        images, depths = zip(*(self.world.draw(camera) for camera in self._pair), strict=True)
        self._images, self._drawn = list(images), self._steps
        if self.points:
            matrices = stack_matrices(self._pair, self.size, self.size)
            self._shown_points = cell_points(np.stack(depths), *matrices, self.points).ravel()

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action in this state, (4,) float32; it uses privileged information."""
        return self.world.expert_action()

    def render(self) -> np.ndarray:
        """Renders the cameras' current images, side by side and twice as large: (2 H, 4 W, 3) uint8."""
        if self._drawn != self._steps:
            self._draw()
        return np.concatenate(self._images, axis=1).repeat(2, axis=0).repeat(2, axis=1)

    def close(self) -> None:
        """Frees the simulator."""
        self._world = None


@EnvConfig.register_subclass("sf_metaworld")
@dataclass
class SimEnvConfig(EnvConfig):
    """LeRobot's configuration of `SimEnv`.

    Attributes:
        task: a Meta-World task, or several with commas between them.
        fps: control steps a second.
        size: height and width of images.
        camera: a new random pose every "frame" or "episode", "fixed", or "beyond" (see `SimEnv`).
        start: "random-hand" or "initial".
        success_radius: for reach-v3, metres.
        max_steps: length of an episode; None for the task's own.
        look_every: draw new images on every so many steps only: the policy's `n_action_steps` or a divisor.
        points: see `SimEnv`; as many as the demonstrations have.
    """

    task: str | None = "reach-v3"
    fps: int = FPS
    size: int = 112
    camera: str = "episode"
    start: str = "random-hand"
    success_radius: float = 0.05
    max_steps: int | None = None
    look_every: int = 1
    points: int = 0

    def __post_init__(self):
        image = PolicyFeature(type=FeatureType.VISUAL, shape=(self.size, self.size, 3))
        self.features = {f"observation.images.{view}": image for view in VIEWS} | {
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
            "environment_state": PolicyFeature(type=FeatureType.ENV, shape=(6,)),
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(4,)),
        }
        if self.points:
            self.features["points"] = PolicyFeature(
                type=FeatureType.STATE, shape=(points_width(self.points),)
            )
        renamed = {"agent_pos": OBS_STATE, "environment_state": OBS_ENV_STATE, "points": POINTS}
        self.features_map = {key: renamed.get(key, key) for key in self.features}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Options of `SimEnv` other than the task."""
        names = ("size", "camera", "start", "success_radius", "max_steps", "look_every", "points")
        return {name: getattr(self, name) for name in names}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Creates a vector environment of `n_envs` worlds for each task, each at rest once its episode ends.

        Worlds of one process share the compiled model and the renderer; processes (`use_async_envs`) do not.

        Raises:
            SpatialForcingError: no task is named.
            UnknownNameError: an unknown task.
        """
        with said_last():
            tasks = [task.strip() for task in (self.task or "").split(",") if task.strip()]
            if not tasks:
                raise SpatialForcingError("Name a task, for instance --env.task=reach-v3.")
            return {task: {0: self._vector(task, n_envs, use_async_envs)} for task in tasks}

    def _vector(self, task: str, n_envs: int, use_async_envs: bool) -> gym.vector.VectorEnv:
        task_record(task)
        make = freeze_after_episode_end(partial(SimEnv, task, **self.gym_kwargs))
        if use_async_envs and n_envs > 1:
            return gym.vector.AsyncVectorEnv([make] * n_envs, context="spawn")
        return gym.vector.SyncVectorEnv([make] * n_envs)
