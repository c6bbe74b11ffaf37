"""Work in pieces that are files: a folder is claimed for one job, and several processes make what it lacks.

A piece is written under another name and moved into place when it is whole. Its presence is all the state
there is, so that an interrupted run is started again and makes the rest.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError


def claim_folder(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Write `manifest` to `folder/name`, or check that it is there already.

    Args:
        folder: made if missing.
        name: of the JSON file.
        manifest: what decides the content; must survive JSON unchanged.

    Raises:
        SpatialForcingError: the folder holds something else; nothing is changed.
    """
    path = folder / name
    if path.exists():
        found = json.loads(path.read_text())
        differ = [key for key in manifest if found.get(key) != manifest[key]]
        if differ:
            how = _difference(found.get(differ[0]), manifest[differ[0]])
            raise SpatialForcingError(
                f"{folder} was made with another {differ[0]}: {how}. "
                "Choose another folder, or remove this one to make it anew."
            )
        return
    if folder.exists() and any(folder.iterdir()):
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
    work: Callable[[Any], None], jobs: Sequence[Any], workers: int, poll: Callable[[], None] = lambda: None
) -> None:
    """Run `work(job)` for all jobs, each process a contiguous part of them.

    Args:
        work: picklable; called in spawned processes, or in this one if `workers` is 1.
        jobs: picklable; neighbours share what is slow to load.
        workers: number of processes.
        poll: called in this process about twice a second and at the end; after every job if `workers` is 1.

    Raises:
        Whatever `work` raised first; the other processes end after their current job.
    """
    workers = max(1, min(workers, len(jobs)))
    if workers == 1:
        for job in jobs:
            work(job)
            poll()
        return
    context = get_context("spawn")
    stop = context.Event()
    cuts = np.linspace(0, len(jobs), workers + 1).astype(int)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_remember, initargs=(stop,)) as pool:
        parts = [list(jobs[a:b]) for a, b in pairwise(cuts)]
        running = {pool.submit(partial(_run_part, work), part) for part in parts}
        try:
            while running:
                done, running = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
                poll()
                for future in done:
                    future.result()
        finally:
            stop.set()


_stop: Any = None


def _remember(stop: Any) -> None:
    global _stop
    _stop = stop


def _run_part(work: Callable[[Any], None], part: list[Any]) -> None:
    for job in part:
        if _stop.is_set():
            return
        work(job)
