"""Jobs done in worker processes: each once, nothing is waited for in vain, errors arrive."""

import os
import time
from collections import deque
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from small_workers import in_trouble, is_running, pids_in

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.locks import FolderLock
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs


def note(folder: Path, job: Any) -> None:
    (folder / f"job-{job}").write_text(str(os.getpid()))


def note_slowly(folder: Path, job: Any) -> None:
    time.sleep(0.2)
    note(folder, job)


def run_in_trouble(folder: Path, *jobs: str, **options: Any) -> JobFailed:
    """The error of jobs, each in a worker of its own; afterwards none of these is there any more."""
    with pytest.raises(JobFailed) as failed:
        run_jobs(partial(in_trouble, folder), [deque([job]) for job in jobs], **options)
    assert not any(is_running(int(path.name)) for path in folder.glob("[0-9]*"))
    return failed.value


def test_every_job_is_done_once_in_the_order_of_its_queue(tmp_path):
    shared, polled = deque(range(4)), []
    run_jobs(partial(note_slowly, tmp_path), [shared, shared, deque(["own"])], poll=lambda: polled.append(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job-0", "job-1", "job-2", "job-3", "job-own"]
    by_time = sorted(tmp_path.glob("job-[0-9]"), key=lambda path: path.stat().st_mtime_ns)
    done_by: dict[str, list[str]] = {}
    for path in by_time:  # workers may be of any speed; each takes the next of what is left
        done_by.setdefault(path.read_text(), []).append(path.name)
    assert all(names == sorted(names) for names in done_by.values())
    assert sorted(names[0] for names in done_by.values()) == ["job-0", "job-1"]
    pids = {path.read_text() for path in tmp_path.iterdir()}
    assert len(pids) == 3
    assert polled
    assert not any(is_running(int(pid)) for pid in pids)


def test_a_failing_job_stops_the_others_and_its_error_arrives(tmp_path):
    failed = run_in_trouble(tmp_path, "theirs", "sleeps")
    assert failed.job == "theirs"
    assert isinstance(failed.error, ZeroDivisionError)
    assert "in in_trouble" in failed.error.__notes__[0]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [("ours", SpatialForcingError, "Did you mean 'vggt'"), ("exit", RuntimeError, "SystemExit: no GPU")],
)
def test_errors_that_do_not_survive_pickling_still_say_what_happened(tmp_path, job, kind, says):
    failed = run_in_trouble(tmp_path, job)
    assert type(failed.error) is kind
    assert says in str(failed.error)


def test_a_killed_worker_is_seen_and_named(tmp_path):
    from spatial_forcing.sim.pieces import in_processes  # every worker imports this file

    failed = run_in_trouble(tmp_path, "sleeps", "killed")
    assert failed.job == "killed"
    assert isinstance(failed.error, WorkerLost)
    assert "was killed by SIGKILL: out of memory?" in str(failed.error)
    says = r"^killed: its process .* out of memory\?.*to continue"
    with FolderLock(tmp_path) as lock, pytest.raises(SpatialForcingError, match=says):
        in_processes(partial(in_trouble, tmp_path), ["killed", "sleeps"], 2, lock=lock)


def test_a_job_that_stands_still_is_ended_with_its_stacks(tmp_path):
    """Only the one that makes no progress, and even if it holds the interpreter's lock."""
    counter = count()

    def progress(job: str) -> int:
        stands_still = job == "stuck" and bool(pids_in(tmp_path, 2))
        return 0 if stands_still else next(counter)

    failed = run_in_trouble(tmp_path, "sleeps", "stuck", watch=Watch(progress, 1.0), every=0.1)
    assert failed.job == "stuck"
    assert isinstance(failed.error, WorkerLost)
    assert "made no progress for 1 s and was ended" in str(failed.error)
    assert "in in_trouble" in failed.error.stacks
