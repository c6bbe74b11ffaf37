"""Simulation: Meta-World with cameras, depth, scripted experts, demonstrations and a LeRobot environment.

    from spatial_forcing.sim import DemoSpec, collect, demo_dataset, load_geometry

    root = collect(DemoSpec(tasks=("reach-v3",), episodes=250), "demos/reach")
    dataset = demo_dataset(root)            # a LeRobotDataset
    depth = load_geometry(root, 0)["depth_TVHW"]

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spatial_forcing.sim.camera import Camera, Jitter, default_cameras
    from spatial_forcing.sim.collect import collect, demo_dataset, render_frames
    from spatial_forcing.sim.env import SimEnv, SimEnvConfig
    from spatial_forcing.sim.folder import load_geometry
    from spatial_forcing.sim.scenes import ScenesSpec, render_scenes
    from spatial_forcing.sim.spec import DemoSpec
    from spatial_forcing.sim.tasks import POLICY_TASKS, TASKS, TEACHER_TASKS
    from spatial_forcing.sim.world import World

_HOME = {
    "Camera": "camera",
    "DemoSpec": "spec",
    "Jitter": "camera",
    "POLICY_TASKS": "tasks",
    "ScenesSpec": "scenes",
    "SimEnv": "env",
    "SimEnvConfig": "env",
    "TASKS": "tasks",
    "TEACHER_TASKS": "tasks",
    "World": "world",
    "collect": "collect",
    "default_cameras": "camera",
    "demo_dataset": "collect",
    "load_geometry": "folder",
    "render_frames": "collect",
    "render_scenes": "scenes",
}

__all__ = [
    "POLICY_TASKS",
    "TASKS",
    "TEACHER_TASKS",
    "Camera",
    "DemoSpec",
    "Jitter",
    "ScenesSpec",
    "SimEnv",
    "SimEnvConfig",
    "World",
    "collect",
    "default_cameras",
    "demo_dataset",
    "load_geometry",
    "render_frames",
    "render_scenes",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
