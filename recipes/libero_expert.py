"""How often the scripted expert solves each task of LIBERO, from its fixed initial states.

    python recipes/libero_expert.py --suite libero_object
    python recipes/libero_expert.py --suite libero_spatial

Nothing is drawn. Episode i has state i and seed i. About a quarter of an hour a suite on one core; a run
that was interrupted goes on. Writes docs/results/libero/expert_<suite>.json.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from spatial_forcing import provenance
from spatial_forcing.files import read_json, write_json
from spatial_forcing.libero.expert import Expert
from spatial_forcing.libero.install import installed_versions
from spatial_forcing.libero.suites import Task, tasks_of
from spatial_forcing.libero.world import LiberoWorld
from spatial_forcing.stats import wilson


@dataclass
class Args:
    """Options of the recipe."""

    suite: Literal["libero_object", "libero_spatial"]
    """Which suite."""
    tasks: tuple[int, ...] = ()
    """Numbers of its tasks; all if empty."""
    episodes: int = 10
    """Per task."""
    out: Path = Path("docs/results/libero")
    """Folder for the numbers."""


def episodes_of(task: Task, count: int) -> list[dict[str, Any]]:
    """Outcomes and seconds of a task's episodes, resets included."""
    world, found = LiberoWorld(task), []
    for episode in range(count):
        start = time.perf_counter()
        world.reset(seed=episode, state=episode)
        outcome = Expert(world.scene, world.step).run()
        found.append({"state": episode, "seed": episode, **asdict(outcome)})
        found[-1]["seconds"] = round(time.perf_counter() - start, 2)
    world.close()
    return found


def main(args: Args) -> None:
    made_with = provenance.made_with()
    path = args.out / f"expert_{args.suite}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    done = read_json(path).get("tasks", {}) if path.is_file() else {}
    for task in tasks_of(args.suite, args.tasks):
        known = done.get(str(task.number))
        if known is None or len(known["episodes"]) < args.episodes:
            done[str(task.number)] = {
                "instruction": task.instruction,
                "commit": made_with["commit"],  # a run that goes on may be of a later one
                "episodes": episodes_of(task, args.episodes),
            }
        episodes = done[str(task.number)]["episodes"]
        rate = wilson(sum(one["success"] for one in episodes), len(episodes))
        print(f"{task}: {rate.successes}/{rate.episodes}, {task.instruction}", flush=True)
        numbers = {"suite": args.suite, "versions_of_libero": installed_versions(), "tasks": done}
        write_json(path, {**made_with, **numbers})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
