"""What a run of a comparison starts ends with it, also what torch would leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from small_workers import SOON, TESTS, is_running, pids_in, wait_for

from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.launch import run_logged
from spatial_forcing.compare.run import RunSpec

LEADER = """
import os, signal, sys, time
from pathlib import Path

class Late:
    # Comes up in the process of the loader only when the one that trains is dead.
    def __init__(self, marks):
        self.marks, self.trains = marks, os.getpid()
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return index
    def __setstate__(self, state):
        vars(self).update(state)
        if self.marks.name == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (self.marks / str(os.getpid())).touch()
        while os.getppid() == self.trains:
            time.sleep(0.01)

if __name__ == "__main__":
    marks, guarded = Path(sys.argv[1]), sys.argv[2]
    if guarded == "guarded":
        from spatial_forcing.process_group import end_group_with_leader
        end_group_with_leader()
    from torch.utils.data import DataLoader
    next(iter(DataLoader(Late(marks), num_workers=1, multiprocessing_context="spawn")))
"""


@contextmanager
def led(marks: Path, guarded: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process with a torch loader, and the id of the loader's process, which has not come up yet."""
    marks.mkdir()
    program = marks.with_suffix(".py")
    program.write_text(LEADER)
    source = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    leader = subprocess.Popen(
        [sys.executable, str(program), str(marks), guarded],
        env=os.environ | {"PYTHONPATH": source},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield leader, wait_for(lambda: pids_in(marks, 1))[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait(SOON)


@pytest.mark.parametrize(("how", "name"), [(signal.SIGTERM, "listens"), (signal.SIGKILL, "deaf")])
def test_a_loader_that_comes_up_too_late_ends_with_its_training(tmp_path, how, name):
    with led(tmp_path / name, "guarded") as (leader, loader):
        leader.send_signal(how)
        leader.wait(SOON)
        wait_for(lambda: not is_running(loader), SOON)


def test_without_a_guard_it_would_stay(tmp_path):
    """Or nothing is tested above, and torch has mended it."""
    with led(tmp_path / "listens", "unguarded") as (leader, loader):
        leader.kill()
        leader.wait(SOON)
        time.sleep(4)
        assert is_running(loader)


STARTS_ANOTHER = """
import os, subprocess, sys
if "spatial_forcing.compare.run" in sys.orig_argv:  # not what that starts
    marks = os.environ["MARKS"]
    child = f"import os, time; open(os.path.join({marks!r}, str(os.getpid())), 'w'); time.sleep(1000)"
    started = subprocess.Popen([sys.executable, "-S", "-c", child])
"""


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("accelerate", [None, ("--num_processes=1", "--cpu")])
def test_what_a_run_of_a_comparison_starts_ends_with_it(tmp_path, monkeypatch, accelerate):
    """Its interpreter starts a process that nobody waits for."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STARTS_ANOTHER)
    (marks := tmp_path / "marks").mkdir()
    source = os.pathsep.join([str(tmp_path / "site"), str(TESTS.parent / "src")])
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.setenv("MARKS", str(marks))
    RunSpec((), (1,), (0,), 1, 1, 0, 0, ()).save(tmp_path / "run")
    with pytest.raises(CompareError):  # it has no flags
        run_logged(tmp_path / "run", accelerate)
    started = [int(path.name) for path in marks.iterdir()]
    try:
        assert started
        wait_for(lambda: not any(map(is_running, started)), SOON)
    finally:
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


ONE_OF_MANY = """
import os
from spatial_forcing.process_group import end_group_with_leader

end_group_with_leader()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("has none")
"""


@pytest.mark.parametrize("group", [None, 0])
def test_a_process_in_the_session_of_another_watches_nobody(group):
    """Nor does it end others of its group, as in a shell's pipeline, whose first process leads one."""
    source = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", ONE_OF_MANY],
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
        process_group=group,
    )
    assert found.stdout == "has none\n"
