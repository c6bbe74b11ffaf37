"""How far apart LIBERO's fixed initial states put the object that a task is about.

    python recipes/libero_spread.py

Where they put it in one place, a policy needs no images to reach it: see docs/libero.md. A minute for
libero_object and libero_spatial. Writes docs/results/libero/spread.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from spatial_forcing import provenance
from spatial_forcing.files import write_json
from spatial_forcing.libero.install import installed_versions
from spatial_forcing.libero.suites import Task, tasks_of
from spatial_forcing.libero.world import LiberoWorld

CM = 100


@dataclass
class Args:
    """Options of the recipe."""

    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    out: Path = Path(__file__).resolve().parents[1] / "docs" / "results" / "libero" / "spread.json"


def places_N2(task: Task) -> np.ndarray:
    """Where the object is in each initial state, x and y in the world, metres."""
    world = LiberoWorld(task)
    try:
        world.reset(seed=0, state=0)
        scene, env = world.scene, world._env
        assert scene.carried is not None
        found = []
        for state in world.states:
            env.sim.set_state_from_flattened(state)
            env.sim.forward()
            found.append(scene.position_3(scene.carried)[:2])
    finally:
        world.close()
    return np.array(found)


def measured(task: Task) -> dict[str, Any]:
    """The spread of a task's object, centimetres."""
    at_N2 = places_N2(task)
    off_N = np.linalg.norm(at_N2 - np.median(at_N2, axis=0), axis=1)
    x, y = CM * np.ptp(at_N2, axis=0)
    row = {"median": CM * np.median(off_N), "most": CM * off_N.max(), "x": x, "y": y}
    return {"task": str(task), "instruction": task.instruction, "states": len(at_N2)} | {
        name: round(float(value), 2) for name, value in row.items()
    }


def main(args: Args) -> None:
    """Measures every task, and writes the numbers."""
    rows = []
    for task in (one for suite in args.suites for one in tasks_of(suite)):
        rows.append(measured(task))
        print("{task}: {median} cm off the middle (median), {most} at most".format(**rows[-1]))
    made = provenance.made_with() | {"versions": installed_versions()}
    write_json(args.out, {**made, "unit": "cm", "tasks": rows})


if __name__ == "__main__":
    main(tyro.cli(Args))
