"""Attempts of the expert at a task in LIBERO, each recorded in files that wait to become part of a data set.

    .pieces/03_00012.safetensors     attempt 12 at task 3: whether it succeeded, states, actions, images
    .pieces/03_00012.geometry        its depth and cameras

An episode is rolled out first; if the expert succeeded, its frames are drawn from where everything was.

T frames of an episode, V = 2 views ("image", "image2"), H rows, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spatial_forcing.files import write_atomically
from spatial_forcing.libero.expert import Expert, Outcome
from spatial_forcing.libero.spec import LiberoSpec
from spatial_forcing.libero.suites import Task
from spatial_forcing.libero.world import CAMERAS, LiberoWorld
from spatial_forcing.sim.folder import GEOMETRY
from spatial_forcing.sim.packed import packed, unpacked

_AT_ONCE = 5  # attempts by one world


@dataclass(frozen=True)
class Attempts:
    """Unit of work: consecutive attempts at a task, each recorded in two files."""

    task: Task
    first: int
    count: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)

    def finished(self, root: Path) -> int:
        """Number of those recorded so far."""
        return sum(path_of(root, self.task, number).exists() for number in self.numbers)

    def __str__(self) -> str:
        return f"Recording attempts {self.first} to {self.first + self.count - 1} at {self.task}"


def jobs_of(root: Path, task: Task, planned: int) -> Iterator[Attempts]:
    """The attempts at a task that are not recorded, some at a time."""
    missing = [number for number in range(planned) if not path_of(root, task, number).exists()]
    while missing:
        together = [number for i, number in enumerate(missing[:_AT_ONCE]) if number == missing[0] + i]
        yield Attempts(task, together[0], len(together))
        missing = missing[len(together) :]


def make(spec: LiberoSpec, root: Path, job: Attempts) -> None:
    """Records attempts: depth and cameras first, then the rest, whose presence marks it complete."""
    from safetensors.numpy import save_file

    world = LiberoWorld(job.task, spec.size, spec.rendering)
    try:
        for number in job.numbers:
            path = path_of(root, job.task, number)
            if path.exists():
                continue
            outcome, episode = demonstrate(world, spec, number)
            arrays = {"success": np.array([outcome.success]), "steps": np.array([outcome.steps])}
            if outcome.success:
                geometry = {key: episode.pop(key) for key in GEOMETRY}
                write_atomically(geometry_of(path), partial(save_file, geometry))
                arrays |= packed(episode.pop("rgb_TVHW3")) | episode
            write_atomically(path, partial(save_file, arrays))
    finally:
        world.close()


def demonstrate(world: LiberoWorld, spec: LiberoSpec, number: int) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Lets the expert try a task, and draws what it did if it succeeded.

    Args:
        world: of the task.
        spec: what to record.
        number: of the attempt; with the spec it decides everything.

    Returns:
        How it ended; after a success rgb_TVHW3, depth_TVHW, intrinsics_TV33, extrinsics_TV34, state_T8,
        action_T7.
    """
    fixed = spec.start == "fixed"
    world.reset(spec.seed + number, number % len(world.states) if fixed else None)
    places, states, actions = [], [], []

    def step(action_7: np.ndarray) -> bool:
        places.append(world.snapshot)
        states.append(world.state_8)
        actions.append(action_7)
        return world.step(action_7)

    outcome = Expert(world.scene, step).run()
    if not outcome.success:
        return outcome, {}
    frames = []
    for place in places:
        world.show(place)
        frames.append(world.draw())
    # In C order: safetensors writes an array's memory as it lies, and a stack of transposed matrices lies
    # otherwise.
    stacked = {
        name.replace("_V", "_TV"): np.ascontiguousarray(np.stack([frame[name] for frame in frames]))
        for name in frames[0]
    }
    stacked["depth_TVHW"] = stacked["depth_TVHW"].astype(np.float16)
    return outcome, stacked | {"state_T8": np.stack(states), "action_T7": np.stack(actions)}


def ended(root: Path, task: Task, number: int) -> dict[str, Any]:
    """How a recorded attempt ended."""
    from safetensors import safe_open

    with safe_open(path_of(root, task, number), "np") as file:
        return {"success": bool(file.get_tensor("success")[0]), "steps": int(file.get_tensor("steps")[0])}


def kept_of(root: Path, task: Task, planned: int) -> list[int]:
    """Attempts at a task that succeeded, of those recorded."""
    there = (number for number in range(planned) if path_of(root, task, number).exists())
    return [number for number in there if ended(root, task, number)["success"]]


def read(root: Path, task: Task, number: int) -> dict[str, Any]:
    """A demonstration in the form that `write_dataset` takes."""
    from safetensors.numpy import load_file

    tensors = load_file(path_of(root, task, number))
    _, images = next(unpacked(tensors, tuple(CAMERAS)))
    vectors = {"observation.state": tensors["state_T8"], "action": tensors["action_T7"]}
    return {"task": task.instruction, **images, **vectors}


def path_of(root: Path, task: Task, number: int) -> Path:
    return root / ".pieces" / f"{task.number:02d}_{number:05d}.safetensors"


def geometry_of(path: Path) -> Path:
    return path.with_suffix(".geometry")
