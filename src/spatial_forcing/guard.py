"""Error handling of commands: one message on standard error, and no traceback.

``guarded`` is for our own commands. LeRobot's commands print a traceback of whatever reaches the top; there
``say_last`` makes an error of ours end with its message alone. It is switched on when a policy with forcing
is made, and by ``said_last`` where an error of ours is raised before there is one (see ``patches``).
"""

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from spatial_forcing.errors import SpatialForcingError

# What shells make of Ctrl-C and of SIGTERM.
INTERRUPTED, TERMINATED = 130, 143
# torch raises what happened in a process of a DataLoader again, with the traceback there as the message.
FROM_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
OURS = re.compile(r"^(?:lerobot_policy_)?spatial_forcing[\w.]*: ", re.MULTILINE)


def guarded(run: Callable[[], None], stopped: Callable[[], str]) -> None:
    """Runs a command and turns expected errors into a message and an exit status.

    The status is 2 for errors of ours and of the machine (a full disk, a folder without write permission),
    130 after Ctrl-C, 143 within :func:`terminable` after SIGTERM. Any other exception is a bug and keeps its
    traceback, as does everything in Python's development mode (``python -X dev``).

    Args:
        run: the command.
        stopped: says what is kept after Ctrl-C or SIGTERM, and what to do.
    """
    try:
        run()
        sys.stdout.flush()  # a full disk may show only now
    except (KeyboardInterrupt, Terminated) as error:
        release(error)
        print(f"\nspatial-forcing: stopped. {stopped()}", file=sys.stderr)
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else TERMINATED)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except Exception as error:
        message = message_of(error)
        if message is None or sys.flags.dev_mode:
            raise
        release(error)
        print(f"spatial-forcing: {message}", file=sys.stderr)
        sys.exit(2)


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """Context in which SIGTERM, as a cluster sends it, cleans up as Ctrl-C does, rather than killing at once:
    temporary folders are removed, started processes ended. Who ignores SIGTERM goes on doing so."""
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before in (signal.SIG_IGN, None):  # None: not set from Python
        yield
        return
    process = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() == process:
            signal.signal(number, signal.SIG_IGN)  # a second one would break off the cleanup
            raise Terminated
        # A copy of this process, as forked workers are, has nothing to clean up.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def message_of(error: BaseException) -> str | None:
    """The message for an error of ours, or of the machine; None for any other."""
    ours = message_of_ours(error)
    if ours is not None or not isinstance(error, OSError) or error.errno is None:
        return ours
    where = f"{error.filename}: " if error.filename is not None else ""
    hint = " Free some space and run the same command again." if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror}.{hint}"


def message_of_ours(error: BaseException) -> str | None:
    """The message of an error of ours, also one wrapped in others; None for any other."""
    if FROM_WORKER.match(str(error)):
        *_, last = [None, *OURS.finditer(str(error))]
        return last and str(error)[last.end() :].strip()
    if isinstance(error, SpatialForcingError):
        return str(error)
    # LeRobot's parser of flags wraps what a configuration raises.
    if type(error).__module__.startswith("draccus.") and error.__cause__ is not None:
        return message_of_ours(error.__cause__)
    return None


def release(error: BaseException) -> None:
    """Frees the objects held by an error's stack frames: progress bars redraw themselves when freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def say_last() -> None:
    """Makes errors of ours that end one of LeRobot's commands print as one last message, without a traceback.

    Everything else is reported as before: other errors, other programs (a script of one's own keeps its
    tracebacks), and all of it in Python's development mode (``python -X dev``). Idempotent.
    """
    before = sys.excepthook
    if hasattr(before, "without_spatial_forcing"):
        return

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = message_of_ours(error)
        if message is None or sys.flags.dev_mode or not runs_lerobot(sys.argv[0]):
            before(kind, error, trace)
            return
        release(error)
        print(f"spatial-forcing: {message}", file=sys.stderr)

    report.without_spatial_forcing = before  # type: ignore[attr-defined]
    sys.excepthook = report


@contextmanager
def said_last() -> Iterator[None]:
    """Context in which an error of ours ends LeRobot's commands with its message alone."""
    try:
        yield
    except SpatialForcingError:
        say_last()
        raise


def runs_lerobot(program: str) -> bool:
    """Whether a path is one of LeRobot's commands: ``lerobot-train``, or its file, as torchrun starts it."""
    return Path(program).stem.replace("_", "-").startswith("lerobot-")
