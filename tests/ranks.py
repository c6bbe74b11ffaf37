"""Tests that need a group of processes: every rank is one of its own, with a deadline.

No rank runs in the process of the tests: destroying a group there can hang for ever. A rank that is not done
at the deadline is ended, with all others, and the test fails with its stacks.
"""

import multiprocessing
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

DEADLINE = 200.0  # seconds; less than a test may take


def in_ranks(
    work: Callable,
    *arguments: Any,
    folder: Path,
    world: int = 2,
    deadline: float = DEADLINE,
    imported: Sequence[str] = (),
) -> list[Any]:
    """What ``work(rank, *arguments)`` returns in each of ``world`` processes of one group (gloo).

    Args:
        work: a function of a test file; what it returns is saved with torch.
        folder: for the results and for the ranks to find each other: no port that another test may take.
        imported: modules to import once for all ranks of all calls, where that takes long. The first call
            that names some decides.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name, pytest.MonkeyPatch.context() as patch:
        if imported:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server's; it imports by it
            multiprocessing.set_forkserver_preload([*imported, work.__module__])
        try:
            run_jobs(
                partial(_rank, Path(name), world, work, arguments),
                [deque([rank]) for rank in range(world)],
                watch=Watch(patience=deadline),
                start="forkserver" if imported else "spawn",
            )
        except JobFailed as failed:
            said = failed.error.stacks if isinstance(failed.error, WorkerLost) else ""
            said = "\n".join([said, *getattr(failed.error, "__notes__", ())])
            pytest.fail(f"Rank {failed.job}: {failed.error}\n{said}", pytrace=False)
        return [torch.load(Path(name) / f"{rank}.pt") for rank in range(world)]


def _rank(folder: Path, world: int, work: Callable, arguments: tuple[Any, ...], rank: int) -> None:
    torch.set_num_threads(1)
    # For accelerate, which finds the group that is there already.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=DEADLINE)
    )
    # The group is never destroyed: the process ends, once all ranks are done. LeRobot's trainer would, and
    # what is released after that (DDP's reducer) can wait for ever for a thread of gloo that waits for it.
    dist.destroy_process_group = lambda *_, **__: None
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
