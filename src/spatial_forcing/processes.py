"""Supervised worker processes: they end with their parent, and crashes and hangs are detected.

A worker is a spawned process that does one job at a time, sent to it over a pipe. It ends when there is
nothing left to do, and when the process that started it ends, even by SIGKILL. When a job fails, a worker
dies or a job makes no progress, all workers are ended and the error says what happened, with the stacks of
the one that stood still.

Stopping is harmless to what a job wrote only if it writes under another name and renames.
"""

import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.locks import FolderLock
from spatial_forcing.threads import waiting_threads_sleep

# Seconds: between two looks at the workers; for one to clean up before it is killed; for its stacks to come.
EVERY, GRACE, STACKS = 0.5, 5.0, 2.0
# Seconds without progress after which a worker counts as hung.
PATIENCE = 600.0
_PR_SET_PDEATHSIG = 1


class WorkerLost(SpatialForcingError):
    """A worker died, or was ended because it made no progress.

    ``stacks`` says where its threads stood then; empty if it died by itself.
    """

    def __init__(self, message: str, stacks: str = ""):
        super().__init__(message)
        self.stacks = stacks


class JobFailed(Exception):
    """A job failed: ``error`` is what its work raised, or a :class:`WorkerLost`."""

    def __init__(self, job: Any, error: Exception):
        super().__init__(f"{job}: {error}")
        self.job, self.error = job, error


@dataclass(frozen=True)
class Watch:
    """Watchdog settings: when a job counts as hung.

    Args:
        progress: a value that changes whenever a job makes progress (such as the size of a file); called in
            the process that waits.
        patience: seconds without progress and without an end. Time during which the waiting process was
            itself stopped does not count.
    """

    progress: Callable[[Any], Any] = lambda job: None
    patience: float = PATIENCE


WATCH = Watch()


def run_jobs(
    work: Callable[[Any], Any],
    queues: Sequence["deque[Any]"],
    *,
    setup: Callable[[], None] | None = None,
    poll: Callable[[], None] = lambda: None,
    every: float = EVERY,
    watch: Watch = WATCH,
    locks: Iterable[FolderLock] = (),
    start: Literal["spawn", "forkserver"] = "spawn",
) -> None:
    """Runs ``work(job)`` for every job in some queues, with a worker process for each queue.

    Args:
        work: picklable, as are the jobs; its result is dropped.
        queues: the jobs of each worker, in order. The same queue may be given several times: these workers
            share it.
        setup: called in each worker before its first job.
        poll: called here after every look at the workers, and at the end.
        every: seconds between two looks.
        watch: when a job counts as hung.
        locks: of folders that the workers write in; they hold them too.
        start: as in multiprocessing; "forkserver" where many workers, one after the other, import the same.

    Raises:
        JobFailed: a job failed. All others have been stopped.
    """
    waiting_threads_sleep()
    workers = [_Worker(queue, tuple(locks), start) for queue in queues]
    try:
        for worker in workers:
            worker.start(setup, work)
        before = time.monotonic()
        while True:
            for worker in workers:
                worker.take_job()
            busy = [worker for worker in workers if worker.busy]
            if not busy:
                break
            wait([worker.connection for worker in busy], timeout=every)
            now = time.monotonic()
            passed, before = min(now - before, 2 * every), now
            for worker in busy:
                worker.look(passed, watch)
            poll()
        poll()
    finally:
        _end(workers)


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, queue: "deque[Any]", locks: tuple[FolderLock, ...], start: str):
        context: Any = get_context(start)
        self.queue, self.job, self.busy = queue, None, False
        self.connection, self._far = context.Pipe()
        self._stacks, self._far_stacks = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(self._far, self._far_stacks, locks))

    def start(self, setup: Callable[[], None] | None, work: Callable[[Any], Any]) -> None:
        # Ctrl-C is for this process, which ends the workers: they start, and stay, deaf to it. The tracker of
        # multiprocessing comes first, as its start would open their ears again.
        resource_tracker.ensure_running()
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        self._far.close()
        self._far_stacks.close()
        self._send((setup, work))

    def take_job(self) -> None:
        """Starts the next job of the queue unless one is running."""
        if not self.busy and self.queue:
            self.job, self.busy = self.queue.popleft(), True
            self._mark, self._idle = None, 0.0
            self._send(self.job)

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: the next look finds that
            self.connection.send(message)

    def look(self, passed: float, watch: Watch) -> None:
        """Reads the worker's messages and checks that it is alive, after ``passed`` seconds.

        Raises:
            JobFailed: its job failed, it is dead, or it made no progress for too long.
        """
        if self.connection.poll():
            try:
                error = self.connection.recv()
            except (EOFError, OSError):
                raise JobFailed(self.job, self._death()) from None
            self.busy = False
            if error is not None:
                raise JobFailed(self.job, error) from error
            return
        if not self.process.is_alive():  # and a process that it started holds the pipe open
            raise JobFailed(self.job, self._death())
        mark = watch.progress(self.job)
        self._idle = self._idle + passed if mark == self._mark else 0.0
        self._mark = mark
        if self._idle > watch.patience:
            stacks = self._read_stacks()
            self.process.kill()
            how = f"made no progress for {watch.patience:.0f} s and was ended"
            raise JobFailed(self.job, WorkerLost(f"its process ({self.process.pid}) {how}", stacks))

    def _death(self) -> WorkerLost:
        """The error for a worker that died by itself: its exit code or signal."""
        self.process.join(timeout=STACKS)
        code = self.process.exitcode
        how = f"ended by itself with status {code}"
        if code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ": out of memory?" if code == -signal.SIGKILL else ""
        return WorkerLost(f"its process ({self.process.pid}) {how}")

    def _read_stacks(self) -> str:
        """Stack traces of the worker's threads; works while it is stuck in foreign code."""
        os.kill(self.process.pid or 0, signal.SIGUSR1)
        parts, deadline = [], time.monotonic() + STACKS
        # Written at once: a pause is the end.
        while wait([self._stacks], timeout=0.3 if parts else STACKS) and time.monotonic() < deadline:
            part = os.read(self._stacks.fileno(), 1 << 16)
            if not part:
                break
            parts.append(part)
        return b"".join(parts).decode(errors="replace")


def _end(workers: list[_Worker]) -> None:
    """Terminates workers: idle ones at once, others after they have cleaned up, or a time limit."""
    for worker in workers:
        worker.connection.close()  # an idle one has nothing to wait for now
    running = [worker for worker in workers if worker.process.pid is not None]
    for worker in running:
        if worker.busy:
            worker.process.terminate()
    deadline = time.monotonic() + GRACE
    for worker in running:
        worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
        worker.process.kill()
    for worker in running:
        worker.process.join(timeout=GRACE)


# ---- in a worker
# ----------------------------------------------------------------------------------------------------------


class _Ended(BaseException):
    """Raised in a worker that its parent terminates."""


def _serve(connection: Connection, stacks: Connection, locks: tuple[FolderLock, ...]) -> None:
    """Main loop of a worker: does jobs until the parent closes the pipe, and holds ``locks`` until then."""
    end_with_parent()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    signal.signal(signal.SIGTERM, _raise_ended)
    try:
        _do_jobs(connection)
    except (EOFError, ConnectionError, _Ended):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing that runs at exit is worth waiting for, and some of it can hang.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _raise_ended(number: int, frame: Any) -> None:
    raise _Ended


def _do_jobs(connection: Connection) -> None:
    try:
        setup, work = connection.recv()  # imports what they need
        if setup is not None:
            setup()
    except (EOFError, _Ended):
        raise
    except BaseException as error:
        connection.send(_portable(error))  # the answer to the first job
        return
    while True:
        job = connection.recv()
        try:
            work(job)
            answer = None
        except _Ended:
            raise
        except BaseException as error:
            answer = _portable(error)
        connection.send(answer)


def _portable(error: BaseException) -> Exception:
    """A picklable form of an error: itself, or one with the same message; its traceback is a note."""
    kept = None
    if isinstance(error, Exception):
        with suppress(Exception):
            kept = pickle.loads(pickle.dumps(error))
    if not isinstance(kept, Exception):
        ours = isinstance(error, SpatialForcingError)
        kept = SpatialForcingError(str(error)) if ours else RuntimeError(f"{type(error).__name__}: {error}")
    kept.add_note("".join(traceback.format_exception(error)))
    return kept


def end_with_parent() -> None:
    """Makes this process end as soon as the one that started it has ended, however that came about.

    On Linux the kernel sees to it, even while this process is stuck; strictly, when the *thread* that started
    this process ends. Elsewhere, and for the time before this call, a thread of this process waits for the
    parent's end.
    """
    parent, started_by = parent_process(), os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def follow() -> None:
        if parent is not None:
            wait([parent.sentinel])
        else:
            while os.getppid() == started_by:
                time.sleep(EVERY)
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="end with parent").start()
