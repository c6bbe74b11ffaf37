"""How many episodes of LIBERO per minute does `spatial-forcing eval` roll out?

    PYTHONPATH=tests python benchmarks/eval_speed.py

A small policy with random weights, whose episodes all run to their end, through the command's own launcher:
with one process and with two, rendered as LIBERO does and without effects. Writes benchmarks/eval_speed.json.
Needs LIBERO (pip install 'lerobot[libero]'). The first episode of a process builds policy and simulator, and
counts apart; CPU time counts that and, of several processes, their imports.
"""

import json
import os
import resource
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


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(plan: Plan, workers: int) -> dict[str, Any]:
    """Rolls out all episodes of a plan, and says how long that took."""
    jobs, load = list(plan.jobs()), os.getloadavg()[0]
    begun, used = time.perf_counter(), cpu_seconds()
    with FolderLock(plan.out) as lock:
        roll_out_all(plan, jobs, workers=workers, patience=1800, lock=lock, advance=lambda count: None)
    wall, cpu = time.perf_counter() - begun, cpu_seconds() - used
    seconds = [Batch.read(plan.path_of(job)).seconds for job in jobs]
    later = sorted(seconds)[: len(seconds) - workers]  # the longest of each process built the simulator
    return {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "first_episode_seconds": round(max(seconds), 1),
        "later_episode_seconds": round(fmean(later), 1),
        "episodes_per_minute": round(60 * workers / fmean(later), 2),
        "cpu_seconds_per_episode": round(cpu / len(jobs), 1),
        "load_average_before": round(load, 1),
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
