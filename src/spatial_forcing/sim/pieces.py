"""Resumable parallel work in pieces that are files: several processes make those that a folder lacks.

A piece is written under another name and moved into place when it is whole. Its presence is all the state
there is, so that an interrupted run is started again and makes the rest.
"""

from collections import deque
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import WATCH, JobFailed, Watch, WorkerLost, run_jobs


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages that the result depends on.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise MissingDependencyError(str(error.name), "sim") from error


def in_processes(
    work: Callable[[Any], None],
    jobs: Sequence[Any],
    workers: int,
    poll: Callable[[], None] = lambda: None,
    *,
    lock: FolderLock,
    watch: Watch = WATCH,
) -> None:
    """Runs `work(job)` for all jobs in parallel, each process a contiguous part of them.

    Args:
        work: picklable; called in spawned processes, or in this one if `workers` is 1.
        jobs: picklable; neighbours share what is slow to load. `str(job)` says what it is.
        workers: number of processes.
        poll: called in this process about twice a second and at the end; after every job if `workers` is 1.
        lock: of the folder that `work` writes in; the processes hold it too.
        watch: when a job counts as hung; its process is ended then.

    Raises:
        SpatialForcingError: a process died, or made no progress.
        Exception: whatever `work` raised first. The other processes have been ended.
    """
    workers = max(1, min(workers, len(jobs)))
    if workers == 1:
        for job in jobs:
            work(job)
            poll()
        return
    cuts = np.linspace(0, len(jobs), workers + 1).astype(int)
    parts = [deque(jobs[a:b]) for a, b in pairwise(cuts)]
    try:
        run_jobs(work, parts, poll=poll, watch=watch, locks=[lock])
    except JobFailed as failed:
        if not isinstance(failed.error, WorkerLost):
            raise failed.error from None
        raise SpatialForcingError(
            f"{failed.job}: {failed.error}. What is finished is kept: do the same again to continue.\n"
            f"{failed.error.stacks}".rstrip()
        ) from failed.error
