"""Worker processes that get into trouble, and what there is to see of processes."""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatial_forcing.errors import UnknownNameError

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
