"""Steps per second of LIBERO in LeRobot's environment: stock, with cheap rendering, and drawn on demand.

    python benchmarks/libero_speed.py

Two cameras, task 0 of each suite, random small actions; the ways take turns. On demand, one frame of a chunk
of ten is drawn, the one that a policy with action chunks looks at. Software rendering is one thread, so CPU
time is the measure on a machine that does other things as well. Writes docs/results/libero/speed.json.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from record import made_with, quartiles

from spatial_forcing.files import write_json
from spatial_forcing.libero.install import installed_versions, load_libero, quiet
from spatial_forcing.libero.rendering import Shutter, drawn, on_demand

WAYS = ("stock", "cheap", "on demand")
CHUNK = 10


@dataclass
class Args:
    """Options of the benchmark."""

    suites: tuple[str, ...] = ("libero_spatial", "libero_object")
    """Which suites."""
    size: int = 128
    """Height and width of images, pixels."""
    steps: int = 20
    """Steps that are timed at once; a multiple of ten."""
    rounds: int = 4
    """How often each way is timed, in turns."""
    out: Path = Path("docs/results/libero/speed.json")
    """File for the numbers."""


class Way:
    """An environment of LeRobot, drawn in one way."""

    def __init__(self, suite: str, way: str, size: int):
        from lerobot.envs.libero import LiberoEnv, _get_suite

        self.shutter: Shutter | None = None
        with ExitStack() as stack, quiet():
            stack.enter_context(drawn("stock" if way == "stock" else "cheap"))
            if way == "on demand":
                self.shutter = stack.enter_context(on_demand())
            self.env = LiberoEnv(
                _get_suite(suite),
                0,
                suite,
                obs_type="pixels_agent_pos",
                observation_width=size,
                observation_height=size,
            )
            self.env.reset(seed=0)

    def seconds(self, actions: np.ndarray) -> tuple[float, float]:
        """CPU and wall seconds of some steps."""
        cpu, wall = time.process_time(), time.perf_counter()
        for count, action_7 in enumerate(actions):
            if self.shutter is not None:  # the frame after the last action of a chunk is looked at
                self.shutter.open = count % CHUNK == CHUNK - 1
            self.env.step(action_7)
        return time.process_time() - cpu, time.perf_counter() - wall


def measured(suite: str, args: Args) -> dict[str, Any]:
    """Steps per CPU second and per wall second, by way."""
    ways = {way: Way(suite, way, args.size) for way in WAYS}
    draw = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        actions = np.c_[draw.uniform(-0.1, 0.1, (args.steps, 6)), np.full(args.steps, -1.0)]
        for way, timed in ways.items():
            found[way].append(timed.seconds(actions.astype(np.float32)))
    for timed in ways.values():
        timed.env.close()
    return {
        way: {
            "steps_per_cpu_second": quartiles([args.steps / cpu for cpu, _ in of]),
            "steps_per_second": quartiles([args.steps / wall for _, wall in of]),
        }
        for way, of in found.items()
    }


def main(args: Args) -> None:
    record = made_with(args) | {"versions_of_libero": installed_versions()}
    load_libero()
    speeds = {}
    for suite in args.suites:
        speeds[suite] = measured(suite, args)
        for way, of in speeds[suite].items():
            print(
                f"{suite} {way}: {of['steps_per_cpu_second']['median']:.1f} steps per CPU second", flush=True
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, record | {"speeds": speeds})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
