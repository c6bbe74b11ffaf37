"""Who writes what in a cache's folder: a claim says what it will hold, a lock who writes which share of it.

A claim that nothing came of goes away: a start that failed leaves the folder as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spatial_forcing import files
from spatial_forcing.cache.layout import CODEC, COMMAND, SOURCE, UNRECORDED, WHAT, CacheError, Share
from spatial_forcing.locks import FolderBusyError, FolderLock

WRITERS = ".writer-*"


@contextmanager
def writing(root: Path, claimed: dict[str, Any], share: Share) -> Iterator[None]:
    """The folder to write in: made if missing, this share of it held, and claimed. What is new of this goes
    away again if the block fails before anything was finished.

    Raises:
        CacheError: the folder cannot be written to, holds something else, or another process writes this
            share.
    """
    with files.made_folder(root, CacheError), only_writer(root, share):
        new = claim(root, claimed, alone=_is_alone(root))
        try:
            yield
        except BaseException:
            if new and not is_begun(root) and _is_alone(root):
                (root / SOURCE).unlink(missing_ok=True)
            raise


@contextmanager
def only_writer(root: Path, share: Share) -> Iterator[None]:
    """Holds this share of the folder; the lock goes with the process, however it ends."""
    try:
        lock = FolderLock(root, f".writer-{share.rank}-of-{share.world}", wait=0)
    except FolderBusyError as error:
        raise CacheError(
            f"Another process is writing share {share.rank} of {share.world} of {root}. Wait for it, or give "
            f"processes different shares ({COMMAND} reads RANK and WORLD_SIZE)."
        ) from error
    with lock:
        yield


def _is_alone(root: Path) -> bool:
    """Whether the process that holds a share of the folder is the only one."""
    return len(list(root.glob(WRITERS))) == 1


def claim(root: Path, claimed: dict[str, Any], alone: bool = False) -> bool:
    """Notes what an unfinished cache will hold, so that nobody continues it with something else.

    ``alone``: no other process is at work here. Then a claim beside which nothing was finished (its process
    was killed at once) protects nothing, and gives way to this one.

    Returns:
        Whether the claim is a new one.

    Raises:
        CacheError: the folder holds something else; names what differs.
    """
    path = root / SOURCE
    note = partial(files.claim, path, claimed, what=WHAT, only=True, unrecorded=UNRECORDED, error=CacheError)
    try:
        return note()
    except CacheError:
        if not path.is_file() or is_begun(root) or not alone:
            raise
        path.unlink()
        return note()


def is_begun(root: Path) -> bool:
    """Whether an unfinished cache holds something that took time to compute."""
    return (root / CODEC).is_file() or any(root.glob("shard-*.safetensors"))
