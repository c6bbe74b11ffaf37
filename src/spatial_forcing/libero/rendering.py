"""Rendering of LIBERO on a CPU: fewer effects, and only the frames that somebody looks at.

Software rendering takes most of a step. Without antialiasing, shadows and reflections a step takes a third
of the time (docs/libero.md); pixels differ, so use one setting for demonstrations, training and evaluation.
A policy with action chunks looks at one frame of a chunk, and the others need not be drawn.

Both hold for environments that are made, or reset, within the context, LeRobot's too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spatial_forcing.errors import UnknownNameError

RENDERINGS = ("stock", "cheap")


def check_rendering(rendering: str) -> None:
    """Raises :class:`UnknownNameError` unless this is one of ``RENDERINGS``."""
    if rendering not in RENDERINGS:
        raise UnknownNameError("rendering", rendering, RENDERINGS)


@contextmanager
def drawn(rendering: str) -> Iterator[None]:
    """Context in which LIBERO's environments are drawn as named.

    Args:
        rendering: "stock", or "cheap": without antialiasing, shadows and reflections.

    Raises:
        UnknownNameError: no such rendering.
    """
    check_rendering(rendering)
    if rendering == "stock":
        yield
        return
    import mujoco
    from robosuite.utils.binding_utils import MjRenderContext

    stock = MjRenderContext._set_mujoco_context_and_buffers

    def cheap(self: Any) -> None:
        self.model.vis.quality.offsamples = self.model.vis.quality.shadowsize = 0
        stock(self)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scn.flags[flag] = 0

    MjRenderContext._set_mujoco_context_and_buffers = cheap
    try:
        yield
    finally:
        MjRenderContext._set_mujoco_context_and_buffers = stock


@dataclass
class Shutter:
    """Whether cameras draw; while it is closed they give the frame before, once there is one."""

    open: bool = True


@contextmanager
def on_demand() -> Iterator[Shutter]:
    """Context in which the cameras of LIBERO's environments draw only while a shutter is open.

    Yields:
        The shutter, open at first. Whoever steps an environment closes it for the steps whose images nobody
        reads.
    """
    from robosuite.environments.robot_env import RobotEnv

    stock, shutter = RobotEnv._create_camera_sensors, Shutter()

    def gated(self: Any, *args: Any, **kwargs: Any) -> tuple[list[Any], list[str]]:
        sensors, names = stock(self, *args, **kwargs)
        return [_behind(shutter, sensor) for sensor in sensors], names

    RobotEnv._create_camera_sensors = gated
    try:
        yield shutter
    finally:
        RobotEnv._create_camera_sensors = stock


def _behind(shutter: Shutter, sensor: Any) -> Any:
    """A camera's sensor that keeps its last frame."""
    last: list[Any] = []

    def read(obs_cache: dict[str, Any]) -> Any:
        if shutter.open or not last:
            last[:] = [sensor(obs_cache)]
        return last[0]

    read.__modality__ = sensor.__modality__
    return read
