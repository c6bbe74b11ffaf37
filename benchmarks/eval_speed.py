"""How many episodes of LIBERO per minute does `spatial-forcing eval` roll out?

    PYTHONPATH=tests python benchmarks/eval_speed.py

A small policy with random weights, whose episodes all run to their end, through the command's own launcher:
with one process and with two, rendered as LIBERO does and without effects. Writes benchmarks/eval_speed.json.
Needs LIBERO (pip install 'lerobot[libero]'). The first episode of a process builds policy and simulator, and
counts apart.
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro
from libero_wander import CAMERAS
from record import made_with
from small_libero_policy import save_libero_policy

from spatial_forcing.evaluation.env_flags import read_env
from spatial_forcing.evaluation.launch import roll_out_all
from spatial_forcing.evaluation.plan import Plan, tasks_of
from spatial_forcing.evaluation.results import Batch
from spatial_forcing.locks import FolderLock


@dataclass
class Args:
    """Options of the benchmark."""

    suite: str = "libero_object"
    steps: int = 100
    """Control steps of an episode: about as many as a good policy needs."""
    size: int = 112
    """Height and width of the images of both cameras."""
    episodes: int = 6
    """Number of episodes per measurement."""
    workers: tuple[int, ...] = (1, 2)
    renderings: tuple[str, ...] = ("stock", "cheap")
    out: Path = Path(__file__).parent / "eval_speed.json"


def measured(plan: Plan, workers: int) -> dict[str, Any]:
    """Rolls out all episodes of a plan, and says how long that took."""
    jobs, load = list(plan.jobs()), os.getloadavg()[0]
    begun = time.perf_counter()
    with FolderLock(plan.out) as lock:
        roll_out_all(plan, jobs, workers=workers, patience=1800, lock=lock, advance=lambda count: None)
    wall = time.perf_counter() - begun
    batches = sorted((Batch.read(plan.path_of(job)) for job in jobs), key=lambda batch: batch.cpu_seconds)
    later, first = batches[:-workers], batches[-workers:]  # the dearest of each process built the simulator
    seconds = fmean(batch.seconds for batch in later)
    return {
        "wall_seconds_in_all": round(wall, 1),
        "first_episode_cpu_seconds": round(fmean(batch.cpu_seconds for batch in first), 1),
        "episode_cpu_seconds": round(fmean(batch.cpu_seconds for batch in later), 1),
        "episode_wall_seconds": round(seconds, 1),
        "episodes_per_minute": round(60 * workers / seconds, 2),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
    }


def main(args: Args) -> None:
    made, results = made_with(args), {}
    flags = ["--env.type=libero", f"--env.task={args.suite}", "--env.task_ids=[0]"]
    flags += [f"--env.observation_{side}={args.size}" for side in ("height", "width")]
    flags += [f"--env.episode_length={args.steps}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = save_libero_policy(folder / "policy", args.size, CAMERAS)
        tasks = tasks_of(read_env(flags).env)
        for rendering in args.renderings:
            for workers in args.workers:
                plan = Plan(
                    out=folder / f"{rendering}-{workers}",
                    policies={"random": policy},
                    flags=tuple(flags),
                    tasks=tasks,
                    episodes=args.episodes,
                    seed=1_000_000,
                    batch_size=1,
                    rendering=rendering,
                    threads=1,
                    videos=0,
                    device="cpu",
                )
                results[f"{rendering}, {workers}"] = measured(plan, workers)
                print(rendering, workers, json.dumps(results[f"{rendering}, {workers}"]), flush=True)
    args.out.write_text(json.dumps(made | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
