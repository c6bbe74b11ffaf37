"""A process in which file modes count even for root, or in which no file may grow, as on a full disk."""

import contextlib
import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Callable

FULL = 2048  # bytes that still fit
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # capabilities of Linux, see capabilities(7)
VERSION = 0x20080522


def obey_modes() -> None:
    """Gives up root's right to pass over file modes."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for word in (0, 1):  # effective, permitted
        data[word] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, data) == 0


def fill_disk() -> None:
    """From now on, writing more than a little to a file fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))


LIMITS: dict[str, Callable[[], None]] = {"no rights": obey_modes, "full disk": fill_disk}


def in_child(limit: str, run: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Runs in a forked process under a limit; gives back its exit status and what it said."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code, said = 99, ""
        try:
            os.close(read)
            tempfile.tempdir = None
            LIMITS[limit]()
            code, said = run()
        except BaseException as error:
            said = f"Traceback: {type(error).__name__}: {error}"
        with contextlib.suppress(OSError), os.fdopen(write, "w", errors="replace") as pipe:
            pipe.write(said)
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
