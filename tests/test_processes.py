"""Worker processes and folder locks: nothing is waited for in vain, nothing is left behind."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.locks import LOCK, FolderBusyError, FolderLock
from spatial_forcing.processes import JobFailed, Watch, WorkerLost, run_jobs

TESTS = Path(__file__).parent
SOON = 20.0  # seconds, on a busy machine; it is a fraction of one on a quiet one


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``what`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody has collected has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def is_deaf_to_ctrl_c(pid: int) -> bool:
    blocked = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert blocked is not None
    return bool(int(blocked[1], 16) & 1 << (signal.SIGINT - 1))


def pids_in(folder: Path, how_many: int) -> list[int] | None:
    pids = [int(path.name) for path in folder.glob("[0-9]*")]
    return pids if len(pids) == how_many else None


# ---- jobs, done in processes -------------------------------------------------------------------------------


def note(folder: Path, job: Any) -> None:
    (folder / f"job-{job}").write_text(str(os.getpid()))


def note_slowly(folder: Path, job: Any) -> None:
    time.sleep(0.2)
    note(folder, job)


def in_trouble(folder: Path, job: str) -> None:
    """What goes wrong is the name of the job."""
    (folder / str(os.getpid())).touch()
    if job == "ours":
        raise UnknownNameError("teacher", "vgt", ["vggt"])
    if job == "theirs":
        raise ZeroDivisionError("by zero")
    if job == "exit":
        sys.exit("no GPU")
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "stuck":  # with the interpreter's lock: no other Python code of this process runs any more
        ctypes.PyDLL(None).sleep(1000)
    writing = folder / f"{job}.partial"
    try:
        writing.touch()
        time.sleep(1000)
    finally:
        writing.unlink()


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


# ---- nothing is left behind --------------------------------------------------------------------------------

PARENT = """
import signal, sys
from collections import deque
from functools import partial
from pathlib import Path
from spatial_forcing.processes import run_jobs
from test_processes import in_trouble

if __name__ == "__main__":
    # A shell that starts the tests in the background has told them, and so this, to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, *jobs = sys.argv[1:]
    run_jobs(partial(in_trouble, Path(folder)), [deque([job]) for job in jobs])
"""


def start_parent(tmp_path: Path, *jobs: str) -> tuple[subprocess.Popen, list[int]]:
    """A process with a worker for each job, and the workers' ids as soon as they are at it."""
    program, marks = tmp_path / "parent.py", tmp_path / "marks"
    program.write_text(PARENT)
    marks.mkdir()
    source = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, str(program), str(marks), *jobs],
        env=os.environ | {"PYTHONPATH": source},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return parent, wait_for(lambda: pids_in(marks, len(jobs)))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent, workers = start_parent(tmp_path, "sleeps", "stuck")
    parent.kill()
    parent.wait(SOON)
    wait_for(lambda: not any(map(is_running, workers)), SOON)


FOLLOWER = """
import subprocess, sys
child = "import os, time; from spatial_forcing.processes import end_with_parent; end_with_parent(); " \
    "print(os.getpid(), flush=True); time.sleep(1000)"
subprocess.run([sys.executable, "-c", child])
"""


def test_a_process_that_multiprocessing_did_not_start_can_end_with_its_parent_too():
    """As torchrun's do, which writes caches."""
    source = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER],
        env=os.environ | {"PYTHONPATH": source},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait(SOON)
    wait_for(lambda: not is_running(child), SOON)


def test_ctrl_c_ends_all_at_once_and_cleans_up(tmp_path):
    parent, workers = start_parent(tmp_path, "one", "two")
    wait_for(lambda: len(list((tmp_path / "marks").glob("*.partial"))) == 2)
    assert all(map(is_deaf_to_ctrl_c, workers)), "or it would say so when it comes early"
    start = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: parent and workers get it
    said = parent.communicate(timeout=SOON)[1]
    assert time.monotonic() - start < SOON / 2
    assert not any(map(is_running, workers))
    assert said.count("Traceback") == 1, "workers keep quiet"
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not list((tmp_path / "marks").glob("*.partial"))


def test_workers_of_the_real_command_end_with_it(tmp_path):
    command = [sys.executable, "-m", "spatial_forcing.cli", "collect", "--out", str(tmp_path / "demos")]
    source = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [*command, "--episodes", "2000", "--size", "28", "--workers", "2"],
        env=os.environ | {"PYTHONPATH": source},
        stdout=subprocess.DEVNULL,
    )
    wait_for(
        lambda: parent.poll() is not None or list(tmp_path.glob("demos/geometry/*1???.safetensors")), 200
    )
    assert parent.poll() is None
    workers = children(parent.pid)
    assert len(workers) >= 2
    with pytest.raises(FolderBusyError, match=f"started by process {parent.pid} on"):
        FolderLock(tmp_path / "demos", wait=0)
    parent.kill()
    parent.wait(SOON)
    wait_for(lambda: not any(map(is_running, workers)), SOON)
    FolderLock(tmp_path / "demos").close()


# ---- locks -------------------------------------------------------------------------------------------------


def hold(lock: FolderLock, mark: Path) -> None:
    mark.touch()
    time.sleep(1000)


def test_a_folder_has_one_writer_and_the_lock_leaves_nothing_there(tmp_path):
    folder = tmp_path / "new"
    with FolderLock(folder) as lock:
        with pytest.raises(FolderBusyError, match=f"writing in {folder} .*process {os.getpid()} on"):
            FolderLock(folder, wait=0.1)
        FolderLock(folder, "other").close()
    assert not list(folder.iterdir())
    lock.close()  # again
    FolderLock(folder).close()


def test_a_worker_keeps_the_lock_that_its_parent_had(tmp_path):
    lock = FolderLock(tmp_path)
    worker = get_context("spawn").Process(target=hold, args=(lock, tmp_path / "mark"))
    worker.start()
    wait_for((tmp_path / "mark").exists)
    os.close(lock.descriptor)  # as if this process had been killed, and the worker had not noticed
    with pytest.raises(FolderBusyError, match=f"process {os.getpid()} on"):
        FolderLock(tmp_path, wait=0.1)
    worker.kill()
    worker.join(SOON)
    FolderLock(tmp_path).close()


def test_a_forked_worker_keeps_the_lock_too_and_another_programs_filelock_sees_it(tmp_path):
    lock, other = FolderLock(tmp_path), FileLock(tmp_path / LOCK)
    worker = get_context("fork").Process(target=hold, args=(lock, tmp_path / "mark"))
    worker.start()
    wait_for((tmp_path / "mark").exists)
    os.close(lock.descriptor)  # as if this process had been killed
    with pytest.raises(Timeout):
        other.acquire(timeout=0)
    worker.kill()
    worker.join(SOON)
    with other.acquire(timeout=0), pytest.raises(FolderBusyError):
        FolderLock(tmp_path, wait=0)
    FolderLock(tmp_path, wait=0).close()


def test_a_file_that_a_killed_process_left_is_no_lock(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on another machine")
    with FolderLock(tmp_path, wait=0):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpatialForcingError, match="Choose a folder that can be written"):
        FolderLock(tmp_path / "file" / "folder")


# ---- these tests themselves --------------------------------------------------------------------------------

HANGS = """
import ctypes

def test_hangs():
    ctypes.{library}(None).sleep(1000)  # {library} {does}
"""


@pytest.mark.parametrize(
    ("library", "does", "by"),
    [
        ("CDLL", "lets other threads run", "++ Timeout ++"),
        ("PyDLL", "keeps the interpreter's lock", "Timeout (0:"),
    ],
)
def test_a_test_that_hangs_in_foreign_code_is_ended(tmp_path, library, does, by):
    """With the settings of this project, in less time."""
    (tmp_path / "test_hangs.py").write_text(HANGS.format(library=library, does=does))
    settings = ["-c", str(TESTS.parent / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "no:xdist"]
    settings += ["-o", "timeout=1", "-o", "faulthandler_timeout=5"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    said = ended.stdout + ended.stderr
    assert by in said
    assert "in test_hangs" in said
