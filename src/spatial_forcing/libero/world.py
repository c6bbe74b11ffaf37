"""A LIBERO task as a world: reset, step, state as policies get it, and images with depth and cameras.

The environment is LIBERO's own, set up as LeRobot's evaluation does: 20 Hz, changes of the gripper's pose as
actions, ten steps of rest after a reset. Images and depth are of the same moment, depth of the pixels'
centres.

Shapes: V = 2 views, H W pixels.
"""

from typing import Any

import numpy as np

from spatial_forcing.libero.camera import as_policies_see, extrinsics_34, intrinsics_33
from spatial_forcing.libero.install import LiberoError, load_libero, not_made, quiet
from spatial_forcing.libero.rendering import check_rendering, drawn, in_place, plain_buffers
from spatial_forcing.libero.scene import Scene
from spatial_forcing.libero.suites import REINSTALL, Task

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
"""LIBERO's cameras by LeRobot's names: ``observation.images.<name>``."""
REST = 10  # steps after a reset in which things come to rest
STILL_7 = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)


class LiberoWorld:
    """World of one task.

    Args:
        task: which.
        size: height and width of images, pixels; None for a world that cannot be drawn, which is faster.
        rendering: one of ``RENDERINGS``.

    Raises:
        LiberoError: LIBERO, its configuration or its assets are missing.
    """

    def __init__(self, task: Task, size: int | None = None, rendering: str = "stock"):
        check_rendering(rendering)
        self.task, self.size, self.rendering = task, size, rendering
        wrapper = load_libero()
        self.states = fixed_states(task)
        try:
            with quiet(), drawn(rendering):
                self._env: Any = wrapper.ControlEnv(
                    bddl_file_name=str(task.bddl),
                    use_camera_obs=False,
                    has_offscreen_renderer=size is not None,
                    control_freq=20,
                )
        except (OSError, ValueError) as error:
            raise not_made(str(task), task.suite, error) from error
        self._observed: dict[str, Any] = {}
        self._plain: Any = None  # buffers for depth, of this episode's renderer

    def reset(self, seed: int, state: int | None = None) -> None:
        """Starts an episode; the same arguments give the same episode.

        Args:
            seed: of all that is drawn at random, fixtures' places included.
            state: number of a fixed initial state, of which evaluations go through all; None to place the
                objects at random, as for LIBERO's own demonstrations.

        Raises:
            LiberoError: no such state.
        """
        if state is not None and not 0 <= state < len(self.states):
            raise LiberoError(
                f"There are {len(self.states)} fixed initial states of {self.task}, from 0; got {state}."
            )
        self._env.seed(seed)
        self._plain = None
        try:
            with quiet(), drawn(self.rendering):
                self._env.reset()
        except (OSError, ValueError) as error:
            raise not_made(str(self.task), self.task.suite, error) from error
        if state is not None:
            self._env.set_init_state(self.states[state])
        for _ in range(REST):
            self.step(STILL_7)

    def step(self, action_7: np.ndarray) -> bool:
        """Does an action; returns whether the task is solved."""
        self._observed = self._env.step(action_7)[0]
        return self.solved

    @property
    def solved(self) -> bool:
        """Whether the task is solved."""
        return bool(self._env.check_success())

    @property
    def scene(self) -> Scene:
        """What the expert sees; of this episode only."""
        return Scene(self._env.env)

    @property
    def state_8(self) -> np.ndarray:
        """observation.state, float32: the gripper's position, rotation vector, and its fingers' positions."""
        position_3, quaternion_4, fingers_2 = (
            self._observed[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")
        )
        return np.concatenate([position_3, axis_angle(quaternion_4), fingers_2]).astype(np.float32)

    @property
    def snapshot(self) -> np.ndarray:
        """Where everything is; ``show`` brings it back to be drawn."""
        return self._env.sim.data.qpos.copy()

    def show(self, snapshot: np.ndarray) -> None:
        """Puts everything where it was, to be drawn; the episode cannot go on from here."""
        self._env.sim.data.qpos[:] = snapshot
        self._env.sim.forward()

    def draw(self) -> dict[str, np.ndarray]:
        """Images as policies see them, with depth and cameras.

        Returns:
            rgb_VHW3 uint8; depth_VHW float32, metres along the viewing axis; intrinsics_V33 float32, pixels,
            and extrinsics_V34 float32, world to camera: see ``camera.py``.
        """
        if self.size is None:
            raise LiberoError("This world was made without images: give a size.")
        rgb, depth, intrinsics, extrinsics = zip(*map(self._view, CAMERAS.values()), strict=True)
        return {
            "rgb_VHW3": np.stack(rgb),
            "depth_VHW": np.stack(depth).astype(np.float32),
            "intrinsics_V33": np.stack(intrinsics).astype(np.float32),
            "extrinsics_V34": np.stack(extrinsics).astype(np.float32),
        }

    def _view(self, camera: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        sim, size = self._env.sim, self.size or 0
        number = sim.model.camera_name2id(camera)
        rgb_HW3, buffer_HW = self._rendered(camera)
        rotation_33 = sim.data.cam_xmat[number].reshape(3, 3)
        return (
            as_policies_see(rgb_HW3),
            as_policies_see(self._metres(buffer_HW)),
            intrinsics_33(sim.model.cam_fovy[number], size, size),
            extrinsics_34(sim.data.cam_xpos[number], rotation_33),
        )

    def _rendered(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and depth buffer as OpenGL gives them, from one rendering if nothing is antialiased."""
        sim = self._env.sim
        view = {"width": self.size, "height": self.size, "camera_name": camera}
        if self.rendering == "cheap":
            return sim.render(**view, depth=True)
        rgb_HW3, context = sim.render(**view), sim._render_context_offscreen
        if self._plain is None:
            self._plain = plain_buffers(context)
        with in_place(context, self._plain):
            return rgb_HW3, sim.render(**view, depth=True)[1]

    def _metres(self, buffer_HW: np.ndarray) -> np.ndarray:
        """Depth from MuJoCo's depth buffer, which is 0 at the near clipping plane and 1 at the far one."""
        model = self._env.sim.model
        near, far = (plane * model.stat.extent for plane in (model.vis.map.znear, model.vis.map.zfar))
        return near / (1 - buffer_HW.astype(np.float64) * (1 - near / far))

    def close(self) -> None:
        """Frees the simulator and the renderer."""
        self._plain = None  # while its renderer is there
        self._env.close()


def axis_angle(quaternion_4: np.ndarray) -> np.ndarray:
    """The rotation vector of a quaternion (x, y, z, w), as LeRobot computes it, of 0 to 2 pi."""
    x_3, w = quaternion_4[:3], np.clip(quaternion_4[3], -1, 1)
    sine = np.sqrt(1 - w * w)
    return np.zeros(3) if sine <= 1e-10 else x_3 / sine * 2 * np.arccos(w)


def fixed_states(task: Task) -> np.ndarray:
    """A task's fixed initial states, a row each, of a file that comes with the package.

    Raises:
        LiberoError: it cannot be read.
    """
    import torch

    rebuilt = np._core.multiarray._reconstruct
    # All that an array is pickled with; a file with anything else in it is refused.
    array = [np.ndarray, np.dtype, np.dtypes.Float64DType, (rebuilt, "numpy.core.multiarray._reconstruct")]
    try:
        with torch.serialization.safe_globals(array):
            return np.asarray(torch.load(task.states, weights_only=True))
    except Exception as error:  # of many kinds: torch's, pickle's, the disk's
        said = str(error).partition("\n")[0]
        raise LiberoError(
            f"The initial states of {task} cannot be read: {said}. Install LIBERO anew: {REINSTALL}"
        ) from error
