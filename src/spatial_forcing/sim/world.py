"""Meta-World task as a simulated world with cameras: reset by seed, step, expert actions, rendering.

H rows, W columns. Positions are metres in MuJoCo's world frame (z up, the robot stands at the origin and
faces +y).
"""

import copy
import functools
import warnings
from collections.abc import Sequence

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError, UnknownNameError
from spatial_forcing.sim.camera import Camera
from spatial_forcing.sim.meshes import decimate
from spatial_forcing.sim.render import Primitive, Renderer, load_mujoco, prepare
from spatial_forcing.sim.tasks import task_record

GOAL_RADIUS = 0.04
GOAL_RGBA = (0.1, 0.9, 0.2, 1.0)
HAND_BOX = np.array([[-0.28, 0.45, 0.10], [0.28, 0.82, 0.38]])
"""Box of hand positions at a "random-hand" start: low and high corner, metres."""

REACH_BOX = np.array([[-0.25, 0.50, 0.06], [0.25, 0.85, 0.35]])
"""Box of the goal positions of reach-v3. Meta-World's own box is only 20 x 10 x 25 cm."""

CLEARANCE = 0.10
"""Minimum distance of hand and object at a "random-hand" start, metres."""

Seed = int | Sequence[int] | np.random.SeedSequence
STARTS = ("initial", "random-hand", "anywhere")
_ATTEMPTS = 100

_RESTORED = (
    *("body_pos", "body_quat", "site_pos", "site_size", "site_rgba", "geom_rgba", "geom_matid", "mat_rgba"),
    *("mat_texid", "light_pos", "light_dir", "light_diffuse", "light_ambient", "light_specular"),
)


class World:
    """One Meta-World v3 task in MuJoCo, with software rendering.

    Args:
        task: name, for instance "reach-v3".
        size: height and width of images, pixels.
        seed: of the first reset.
        decimated: render simplified meshes (about a sixth of the triangles).

    Raises:
        UnknownNameError: no such task.
        MissingDependencyError: metaworld or mujoco is not installed.
        RenderingError: this machine cannot render; says what to install.
    """

    def __init__(self, task: str, size: int = 112, seed: Seed = 0, *, decimated: bool = True):
        self.task, self.size, self.record = task, size, task_record(task)
        self._renderer = renderer_for(task, size, decimated)
        self._mujoco = load_mujoco()
        self.env = _environment_class(task, size, decimated)()
        self._pristine = {name: getattr(self.env.model, name).copy() for name in _RESTORED}
        headlight = self.env.model.vis.headlight
        self._headlight = {
            name: getattr(headlight, name).copy() for name in ("ambient", "diffuse", "specular")
        }
        self._initial_hand = np.array(self.env.hand_init_pos)
        self._expert = _expert_class(task)()
        self.reset(seed)

    def reset(self, seed: Seed, start: str = "initial") -> None:
        """Begins an episode. Everything that follows is a function of `seed`, `start` and the actions alone.

        Args:
            seed: a non-negative integer, several, or a `numpy.random.SeedSequence`.
            start: "initial" (Meta-World's hand position), "random-hand" (uniform in `HAND_BOX`, clear of the
                object and able to go on from there) or "anywhere" (uniform in `HAND_BOX`).

        Raises:
            UnknownNameError: no such start.
            SpatialForcingError: this task has no such start with these objects.
        """
        if start not in STARTS:
            raise UnknownNameError("start", start, STARTS)
        rng = np.random.default_rng(seed)
        for _ in range(_ATTEMPTS):
            self._begin(start, rng)
            if start != "random-hand" or self._can_go_on():
                return
        raise SpatialForcingError(
            f'{self.task} has no free hand position after {_ATTEMPTS} tries. Use start="initial".'
        )

    def _begin(self, start: str, rng: np.random.Generator) -> None:
        env, hand = self.env, rng.uniform(*HAND_BOX)
        env.hand_init_pos = self._initial_hand.copy() if start == "initial" else hand
        env.settle_steps = 50 if start == "initial" else 120
        self.restore_looks()
        env.np_random = rng
        env.curr_path_length = 0
        self._mujoco.mj_resetData(env.model, env.data)
        env.reset_model()
        self._place_goal(rng)
        self.forward()
        env._prev_obs = env._get_curr_obs_combined_no_goal()

    def _can_go_on(self) -> bool:
        hand, thing = self.state[:3], self.environment_state[:3]
        settled = np.linalg.norm(self.env.data.mocap_pos[0] - hand) < 0.03
        try:
            self._outcome()
        except ValueError:  # Meta-World's reward refuses hands that start right above or beside the object
            return False
        return bool(settled and np.linalg.norm(hand - thing) > CLEARANCE)

    def restore_looks(self) -> None:
        """Undoes every change to positions, colours and lights of the model."""
        for name, values in self._pristine.items():
            getattr(self.env.model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self.env.model.vis.headlight, name)[:] = values

    def _place_goal(self, rng: np.random.Generator) -> None:
        env = self.env
        if self.task == "reach-v3":
            env._target_pos = rng.uniform(*REACH_BOX)
        if self.record.goal_shown:
            env.model.site("goal").pos = env._target_pos
            env.model.site("goal").size[:] = GOAL_RADIUS
            env.model.site("goal").rgba = GOAL_RGBA

    def forward(self) -> None:
        """Recomputes all derived quantities, lights included, after a change of the model or the state."""
        self._mujoco.mj_forward(self.env.model, self.env.data)
        self._info = self._observed = None

    def step(self, action: np.ndarray) -> None:
        """Runs one control step (12.5 ms).

        Args:
            action: (4,), displacement of the hand in units of 1 cm and gripper effort, clipped to [-1, 1].
        """
        self.env.curr_path_length = 0  # the caller decides when an episode ends
        *_, self._info = self.env.step(np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0))
        self._observed = None

    def _outcome(self) -> dict:
        if self._info is None:
            before = self.env._prev_obs
            _, self._info = self.env.evaluate_state(self.env._get_obs(), np.zeros(4, dtype=np.float32))
            self.env._prev_obs = before
        return self._info

    @property
    def distance(self) -> float:
        """Distance to success in metres: hand to goal in reach-v3, else Meta-World's object to target."""
        if self.task == "reach-v3":
            return float(np.linalg.norm(self.env.get_endeff_pos() - self.goal))
        return float(self._outcome()["obj_to_target"])

    def success(self, radius: float = 0.05) -> bool:
        """Whether the task is done: hand within `radius` metres in reach-v3, else Meta-World's criterion."""
        return self.distance <= radius if self.task == "reach-v3" else bool(self._outcome()["success"])

    def move(self, action: np.ndarray) -> None:
        """Runs a control step without Meta-World's reward, which raises errors after some unusual starts."""
        env = self.env
        action = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        env.set_xyz_action(action[:3])
        env.do_simulation([action[-1], -action[-1]], n_frames=env.frame_skip)
        self.forward()

    def expert_action(self) -> np.ndarray:
        """Action of Meta-World's scripted policy, which knows the goal: (4,) float32 in [-1, 1]."""
        before = self.env._prev_obs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Meta-World warns of actions beyond the limits, which we clip
            action = self._expert.get_action(self.env._get_obs())
        self.env._prev_obs = before
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    @property
    def state(self) -> np.ndarray:
        """Hand position and gripper opening (0 to 1), (4,) float32."""
        return self._observation()[:4].astype(np.float32)

    @property
    def environment_state(self) -> np.ndarray:
        """Privileged state: object position and goal position, (6,) float32."""
        return np.concatenate([self._observation()[4:7], self.goal]).astype(np.float32)

    def _observation(self) -> np.ndarray:
        if self._observed is None:
            self._observed = self.env._get_curr_obs_combined_no_goal()
        return self._observed

    @property
    def goal(self) -> np.ndarray:
        """Goal position, (3,) float64."""
        return np.array(self.env._target_pos, dtype=np.float64)

    def draw(self, camera: Camera, primitives: Sequence[Primitive] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Renders `camera`: rgb (H, W, 3) uint8 and z-depth (H, W) float32 in metres."""
        return self._renderer.draw(self.env.model, self.env.data, camera, primitives)


@functools.lru_cache(maxsize=4)
def compiled_model(task: str, size: int, decimated: bool):
    """The task's `mujoco.MjModel`, compiled once per process; copy it before changing anything."""
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_path(_task_class(task).model_name.fget(None))
    prepare(model, size)
    if decimated:
        decimate(model)
    for site in range(model.nsite):
        model.site_rgba[site, 3] = 0.0  # markers of the simulator, not things
    return model


@functools.lru_cache(maxsize=4)
def renderer_for(task: str, size: int, decimated: bool) -> Renderer:
    """Renderer of a task, shared by all worlds of the process: it takes a third of a second to create."""
    return Renderer(compiled_model(task, size, decimated), size)


def _task_class(task: str) -> type:
    load_mujoco()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise MissingDependencyError("metaworld", "sim") from error
    return ALL_V3_ENVIRONMENTS[task]


def _expert_class(task: str) -> type:
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]


@functools.lru_cache(maxsize=64)
def _environment_class(task: str, size: int, decimated: bool) -> type:
    """Subclass of Meta-World's environment with our compiled model, visible goals, and seeded randomness."""
    mujoco = load_mujoco()
    base = _task_class(task)

    class Environment(base):
        settle_steps = 50

        def __init__(self):
            super().__init__(width=size, height=size)
            self._set_task_called = True
            self._freeze_rand_vec = False
            self.seeded_rand_vec = True
            self._partially_observable = False
            everywhere = np.full(3, 10.0)
            self.goal_space = type(self.goal_space)(-everywhere, everywhere, dtype=np.float64)
            del self.sawyer_observation_space  # cached before the goal was observable
            self.observation_space = self.sawyer_observation_space

        def _initialize_simulation(self):
            model = copy.copy(compiled_model(task, size, decimated))
            return model, mujoco.MjData(model)

        def _reset_hand(self, steps: int = 50) -> None:
            super()._reset_hand(steps=max(steps, self.settle_steps))

    Environment.__name__ = base.__name__
    return Environment
