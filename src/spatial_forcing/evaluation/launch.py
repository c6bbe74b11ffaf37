"""Shares the episodes of an evaluation over processes, or rolls them out in this one."""

import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.evaluation.plan import Job, Plan
from spatial_forcing.evaluation.rollout import Rollouts
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

LOG = "log.txt"


def roll_out_all(
    plan: Plan, jobs: Sequence[Job], *, workers: int, patience: float, lock: FolderLock, advance: Callable
) -> None:
    """Rolls out batches of episodes.

    Args:
        plan: of the evaluation.
        jobs: the batches that are missing.
        workers: processes; with 1 none is started.
        patience: seconds after which a batch in a process counts as hung.
        lock: of the folder; the processes hold it, too.
        advance: called with a number of episodes that are done.

    Raises:
        EvalError: an episode failed, or its process died or hung; the others are stopped. What is finished is
            kept.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        _here(plan, jobs, advance)
        return
    waiting = dict.fromkeys(jobs)

    def look() -> None:
        for job in [job for job in waiting if plan.path_of(job).is_file()]:
            del waiting[job]
            advance(job.count)

    queue = deque(jobs)
    try:
        run_jobs(
            Rollouts(plan),
            [queue] * workers,
            setup=partial(_begin, plan.out / LOG, plan.threads),
            poll=look,
            watch=Watch(patience=patience),
            locks=[lock],
        )
    except JobFailed as failed:
        stacks = failed.error.stacks if isinstance(failed.error, WorkerLost) else ""
        notes = "".join(getattr(failed.error, "__notes__", []))
        with (plan.out / LOG).open("a") as log:
            log.write(f"\n{failed.error}\n{notes}{stacks}")
        raise failure(plan, failed.job, failed.error) from failed.error


def _begin(log: Path, threads: int) -> None:
    """Prepares a worker process: its output goes to the log, and it takes its share of threads."""
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    import torch

    torch.set_num_threads(threads)


def _here(plan: Plan, jobs: Sequence[Job], advance: Callable) -> None:
    """Rolls out batches in this process."""
    rollouts = Rollouts(plan)
    try:
        with (plan.out / LOG).open("a") as log, with_threads(plan.threads):
            for job in jobs:
                try:
                    with redirect_stdout(log), redirect_stderr(log):
                        rollouts(job)
                except Exception as error:
                    log.write("".join(traceback.format_exception(error)))
                    raise failure(plan, job, error) from error
                advance(job.count)
    finally:
        rollouts.close()


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Context in which torch computes with a number of threads on the CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failure(plan: Plan, job: Job, error: Exception) -> SpatialForcingError:
    """The error for a batch that failed."""
    said = str(error) if isinstance(error, SpatialForcingError) else f"{type(error).__name__}: {error}"
    kept = f"The log: {plan.out / LOG}. What is finished is kept: run the same command again to continue."
    lost = "Nothing was kept; with --out there is a log, and what is finished stays."
    return EvalError(
        f"{job.policy} on {job.task.name}, from episode {job.first} on, failed: {said}\n"
        f"{kept if plan.kept else lost}"
    )
