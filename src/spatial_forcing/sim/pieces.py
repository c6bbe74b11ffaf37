"""Work in pieces that are files: a folder is claimed for one job, and several processes make what it lacks.

A piece is written under another name and moved into place when it is whole. Its presence is all the state
there is, so that an interrupted run is started again and makes the rest.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.files import check_folder, read_json
from spatial_forcing.locks import LOCK, FolderLock
from spatial_forcing.processes import PATIENCE, JobFailed, WorkerLost, run_jobs


def claim_folder(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Write `manifest` to `folder/name`, or check that it is there already.

    Args:
        folder: made if missing.
        name: of the JSON file.
        manifest: what decides the content; must survive JSON unchanged.

    Raises:
        SpatialForcingError: the folder holds something else; nothing is changed.
    """
    check_folder(folder)
    path = folder / name
    if path.exists():
        found = read_json(path, "Choose another folder, or remove this one to make it anew.")
        differ = [key for key in manifest if found.get(key) != manifest[key]]
        if differ:
            how = _difference(found.get(differ[0]), manifest[differ[0]])
            raise SpatialForcingError(
                f"{folder} was made with another {differ[0]}: {how}. "
                "Choose another folder, or remove this one to make it anew."
            )
        return
    if folder.exists() and any(one.name != LOCK for one in folder.iterdir()):
        raise SpatialForcingError(f"{folder} is not empty and holds no {name}. Choose an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, manifest)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages that decide what is made.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise MissingDependencyError(str(error.name), "sim") from error


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        return "; ".join(f"{key} is {found.get(key)!r} there and {wanted.get(key)!r} here" for key in keys)
    return f"{found!r} there and {wanted!r} here"


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one move."""
    with partial_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1))


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` if the block ends well and vanishes if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that were killed left behind."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def check_space(folder: Path, needed: float) -> None:
    """Check the disk before anything is written.

    Args:
        folder: where things will be; need not exist.
        needed: bytes; a tenth more is asked for.

    Raises:
        SpatialForcingError: less is free.
    """
    home = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(home).free
    if 1.1 * needed > free:
        raise SpatialForcingError(
            f"{folder} needs about {1.1 * needed / 1e9:.2f} GB; {free / 1e9:.2f} GB are free. "
            "Choose a folder on another disk, or ask for less."
        )


def in_processes(
    work: Callable[[Any], None],
    jobs: Sequence[Any],
    workers: int,
    poll: Callable[[], None] = lambda: None,
    *,
    lock: FolderLock,
    progress: Callable[[Any], Any] = lambda job: None,
    patience: float = PATIENCE,
) -> None:
    """Run `work(job)` for all jobs, each process a contiguous part of them.

    Args:
        work: picklable; called in spawned processes, or in this one if `workers` is 1.
        jobs: picklable; neighbours share what is slow to load. `str(job)` says what it is.
        workers: number of processes.
        poll: called in this process about twice a second and at the end; after every job if `workers` is 1.
        lock: of the folder that `work` writes in; the processes hold it too.
        progress: what changes while a job gets further.
        patience: seconds without progress after which a process is ended.

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
        run_jobs(work, parts, poll=poll, progress=progress, patience=patience, locks=[lock])
    except JobFailed as failed:
        if not isinstance(failed.error, WorkerLost):
            raise failed.error from None
        raise SpatialForcingError(
            f"{failed.job}: {failed.error}. What is finished is kept: do the same again to continue.\n"
            f"{failed.error.stacks}".rstrip()
        ) from failed.error
