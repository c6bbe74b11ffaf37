"""Worker processes end with their parent: killed, by Ctrl-C, in the real command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_workers import SOON, TESTS, children, is_deaf_to_ctrl_c, is_running, pids_in, wait_for

from spatial_forcing.locks import FolderBusyError, FolderLock

PARENT = """
import signal, sys
from collections import deque
from functools import partial
from pathlib import Path
from spatial_forcing.processes import run_jobs
from small_workers import in_trouble

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


@pytest.mark.system
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
