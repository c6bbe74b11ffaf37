"""Folder locks for one writer at a time, held by a process and the workers that write for it.

The lock is the native one of the operating system, as filelock takes it, on a small file in the folder. It
is free when every process that held it has closed it or ended, however it ended, so that a killed run never
has to be unlocked by hand. Worker processes that write for the holder get the lock when they are started, and
keep it if the one that started them is killed.

That is why this is filelock's ``lock_descriptor`` on a descriptor of ours and not its ``FileLock``. A
``FileLock`` belongs to one process: it cannot be handed to a worker, a forked worker closes it, and releasing
it unlocks the file for all who share it. Its substitute for file systems without locks is a file that stays
when its owner is killed; here such a folder is refused. Handing the lock over takes descriptors that two
processes can share, which Windows does not have. Nothing else here depends on the system, and reading needs
no lock.
"""

import errno
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import lock_descriptor

from spatial_forcing.errors import SpatialForcingError

LOCK = ".lock"
# Workers of a killed process need a moment to end; a second start right afterwards waits for that.
WAIT, POLL = 2.0, 0.05


class FolderBusyError(SpatialForcingError):
    """Another process holds the lock of the folder."""


class FolderLock:
    """Exclusive lock on a folder for writing, until ``close``, the end of a ``with`` block or of the process.

    Pickled while a process is started, it gives that process the same lock.

    Args:
        folder: made if missing.
        name: of the lock's file.
        wait: seconds to wait for another holder.

    Raises:
        FolderBusyError: another process holds it; says which.
        SpatialForcingError: the folder cannot be made, or its file system has no locks.
    """

    def __init__(self, folder: Path, name: str = LOCK, wait: float = WAIT):
        self.path = Path(folder) / name
        self.descriptor = self._taken(time.monotonic() + wait)
        self.inherited = False

    def _taken(self, deadline: float) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while (descriptor := self._tried()) is None:
                if time.monotonic() >= deadline:
                    raise FolderBusyError(
                        f"Another process is writing in {self.path.parent} ({self._holder()}). Wait until it "
                        "is done, or choose another folder."
                    )
                time.sleep(POLL)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise SpatialForcingError(
                    f"There is no space left for {self.path.parent}: free some, or choose another folder."
                ) from error
            raise SpatialForcingError(
                f"Could not lock {self.path} ({error}). Choose a folder that can be written, on a "
                "file system with locks."
            ) from error
        return descriptor

    def _tried(self) -> int | None:
        """Tries to lock; returns the descriptor that holds the lock, or None if another process has it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # The one who held it may have removed the file after it was opened here.
            if lock_descriptor(descriptor, blocking=False) and self._is_there(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_there(self, descriptor: int) -> bool:
        """Whether the lock file still has its name: it may have been removed, and created anew by another."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        """Who took the lock, according to its file. Workers that inherited it may still hold it."""
        try:
            return f"started by {self.path.read_text() or 'an unknown process'}"
        except OSError:
            return "an unknown process"

    def close(self) -> None:
        """Releases the lock and removes its file, unless this process inherited the lock from another."""
        if self.descriptor < 0:
            return
        if not self.inherited and self._is_there(self.descriptor):
            with suppress(OSError):  # a file that cannot be removed is free all the same
                self.path.unlink()
        os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        from multiprocessing.reduction import DupFd  # not on Windows

        return _inherit, (self.path, DupFd(self.descriptor))


def is_held(folder: Path, name: str = LOCK) -> bool:
    """Whether a process holds the lock of a folder; also True where that cannot be found out."""
    try:
        descriptor = os.open(Path(folder) / name, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _inherit(path: Path, descriptor: Any) -> FolderLock:
    """Recreates the lock in a started process that inherits it."""
    lock = FolderLock.__new__(FolderLock)
    lock.path, lock.descriptor, lock.inherited = path, descriptor.detach(), True
    return lock
