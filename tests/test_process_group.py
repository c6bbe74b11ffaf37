"""What a run of a comparison starts ends with it, also what torch would leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_workers import SOON, TESTS, is_running, pids_in, wait_for

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


def lead(marks: Path, guarded: str = "guarded") -> tuple[subprocess.Popen, int]:
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
    return leader, wait_for(lambda: pids_in(marks, 1))[0]


@pytest.mark.parametrize(("how", "name"), [(signal.SIGTERM, "listens"), (signal.SIGKILL, "deaf")])
def test_a_loader_that_comes_up_too_late_ends_with_its_training(tmp_path, how, name):
    leader, loader = lead(tmp_path / name)
    leader.send_signal(how)
    leader.wait(SOON)
    wait_for(lambda: not is_running(loader), SOON)


def test_without_a_guard_it_would_stay(tmp_path):
    """Or nothing is tested above, and torch has mended it."""
    leader, loader = lead(tmp_path / "listens", "unguarded")
    try:
        leader.kill()
        leader.wait(SOON)
        time.sleep(4)
        assert is_running(loader)
    finally:
        os.kill(loader, signal.SIGKILL)


ONE_OF_MANY = """
import os
from spatial_forcing.process_group import end_group_with_leader

end_group_with_leader()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("has none")
"""


def test_a_process_in_the_group_of_another_watches_nobody():
    """Nor does it end that group: of a shell's script, or of these tests."""
    source = os.pathsep.join([str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-c", ONE_OF_MANY],
        env=os.environ | {"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == "has none\n"
