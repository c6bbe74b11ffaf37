"""Claims and locks of a cache's folder: a claim says what it will hold, a lock who writes which share of it.

A claim beside which nothing was finished is removed: a start that failed leaves the folder as it was.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spatial_forcing import files
from spatial_forcing.cache.layers import claimed_of, stored_layers
from spatial_forcing.cache.layout import (
    CODEC,
    COMMAND,
    MANIFEST,
    POINTS,
    SOURCE,
    UNRECORDED,
    WEIGHTS,
    WHAT,
    CacheError,
    Share,
    check_claim,
)
from spatial_forcing.locks import FolderBusyError, FolderLock

WRITERS = ".writer-*"


@contextmanager
def writing(root: Path, claimed: dict[str, Any], share: Share) -> Iterator[None]:
    """Creates and claims the folder to write in, and locks this share of it. What is new of this is removed
    again if the block fails before anything was finished.

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
    """Locks this share of the folder; the lock is released when the process ends, however it ends."""
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
    """Whether the process that holds a share of the folder is the only writer."""
    return len(list(root.glob(WRITERS))) == 1


def claim(root: Path, claimed: dict[str, Any], alone: bool = False) -> bool:
    """Records what an unfinished cache will hold, so that nobody continues it with something else.

    ``alone``: no other process writes here. Then a claim beside which nothing was finished (its process was
    killed at once) protects nothing, and is replaced by this one.

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
    """Whether an unfinished cache already holds computed features."""
    return (root / CODEC).is_file() or any(root.glob("shard-*.safetensors"))


# ---- one layer or several
# ----------------------------------------------------------------------------------------------------------


def check_one(root: Path) -> None:
    """Raises :class:`CacheError` if a cache of one layer is to be written where several are."""
    if there := stored_layers(root):
        listed = ", ".join(map(str, there))
        raise CacheError(
            f"{root} holds a {WHAT} of several layers ({listed}). To add one: {COMMAND} --layers <number>; "
            "or choose another folder."
        )


def check_several(root: Path, claims: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises :class:`CacheError` if layers cannot be written beside what is there.

    Args:
        root: folder of a cache of several layers.
        claims: by layer, what is to be written. Other layers that are there must be of the same teacher's
            name and options, data set and codec; of the same weights if :func:`check_teacher` agrees.
    """
    if any((root / name).is_file() for name in (SOURCE, MANIFEST)):
        raise CacheError(
            f"{root} holds a {WHAT} of one layer, and several need folders of their own. Choose another "
            "folder."
        )
    there = stored_layers(root)
    names = {POINTS, WEIGHTS, *(path.name for path in there.values())}
    if root.is_dir() and any(
        one.name not in names and not one.name.startswith(".") for one in root.iterdir()
    ):
        raise CacheError(f"{root} is not empty and holds no {WHAT}. Choose a new or empty folder.")
    for layer, found in _begun(there).items():
        if layer not in claims:
            own = {name: found[name] for name in ("layer", "teacher_fingerprint") if name in found}
            check_claim(there[layer], found, dict(next(iter(claims.values()))) | own)


def check_teacher(root: Path, fingerprint_of: Callable[[int], str], layers: int) -> None:
    """Raises :class:`CacheError` unless the layers there are those of a teacher that has so many."""
    for layer, found in _begun(stored_layers(root)).items():
        fingerprint = found.get("teacher_fingerprint")
        if layer < layers and fingerprint != fingerprint_of(layer):
            raise CacheError(
                f"Layer {layer} in {root} is of a teacher of fingerprint {fingerprint}, and this teacher's "
                f"is {fingerprint_of(layer)}: other weights, or another resolution. Choose another folder."
            )


def _begun(there: Mapping[int, Path]) -> dict[int, dict[str, Any]]:
    """The claims of the layers for which something has been computed."""
    return {n: claimed_of(path) for n, path in there.items() if (path / MANIFEST).is_file() or is_begun(path)}
