"""Files and folders: atomic writes, checks before work begins, and claims of a folder for one job.

Errors say which file or folder, what was expected and found, and what to do.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spatial_forcing.errors import SpatialForcingError

# ---- reading
# ----------------------------------------------------------------------------------------------------------


def read_json(
    path: Path, advice: str = "", error: type[SpatialForcingError] = SpatialForcingError
) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        path: the file.
        advice: what to do if it is damaged, as sentences.
        error: what to raise.

    Raises:
        SpatialForcingError: it cannot be read, is no JSON (a damaged file may not even be text), or holds
            something else than an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}. {advice}".rstrip()) from reason
    except (ValueError, RecursionError) as reason:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise error(f"{path} is damaged: it is not readable JSON ({reason}). {advice}".rstrip()) from reason
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise error(f"{path} is damaged: expected a JSON object, found a {kind}. {advice}".rstrip())
    return found


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- writing
# ----------------------------------------------------------------------------------------------------------


def write_atomically(
    path: Path,
    write: Callable[[Path], Any],
    *,
    durable: bool = False,
    advice: str = "",
    error: type[SpatialForcingError] = SpatialForcingError,
) -> Path:
    """Writes a file atomically: under a temporary name, then renamed.

    Args:
        path: the file, in a folder that is there.
        write: writes the path that it is given: ``lambda temporary: save_file(tensors, temporary)``.
        durable: also wait until the content has reached the disk, for files that say that others are done.
        advice: what to do if it cannot be written, as sentences.
        error: what to raise.

    Returns:
        ``path``.

    Raises:
        SpatialForcingError: it cannot be written; what was there is as it was.
    """
    with _temporary(path, write, advice, error) as temporary:
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file (UTF-8) as :func:`write_atomically` does."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Writes plain data as JSON, as :func:`write_atomically` does."""
    return write_text(path, json.dumps(value, indent=1))


def create_once(
    path: Path,
    write: Callable[[Path], Any],
    *,
    advice: str = "",
    error: type[SpatialForcingError] = SpatialForcingError,
) -> bool:
    """Writes a file unless another process has written it first; then theirs stays.

    Arguments and errors are those of :func:`write_atomically`; the folder's file system needs hard links.

    Returns:
        Whether the file is the one written here.
    """
    with _temporary(path, write, advice, error) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


@contextmanager
def _temporary(
    path: Path, write: Callable[[Path], Any], advice: str, error: type[SpatialForcingError]
) -> Iterator[Path]:
    """A temporary file beside ``path``, filled by ``write``, with default permissions; removed at the end."""
    # Processes on other machines, or in other containers, may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read
        yield temporary
    except (OSError, SafetensorError) as reason:
        raise error(f"Could not write {path} ({reason}). {advice}".rstrip()) from reason
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Removes temporary files left behind by killed processes; no process may be writing now."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_space(
    folder: Path,
    needed: float,
    advice: str = "Choose a folder on another disk, or ask for less.",
    error: type[SpatialForcingError] = SpatialForcingError,
) -> None:
    """Raises unless the disk under ``folder``, which need not exist, has ``needed`` bytes free."""
    home = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise error(f"{folder} needs about {size_text(needed)}; {size_text(free)} are free. {advice}")


def size_text(count: float) -> str:
    """Formats a number of bytes: "1.5 GiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


# ---- folders
# ----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path, error: type[SpatialForcingError] = SpatialForcingError) -> None:
    """Raises unless ``folder`` is writable or can be created. Changes nothing."""
    reason = _obstacle(folder)
    if reason:
        raise error(f"{folder} cannot be written to: {reason}. Choose another folder.")


def _obstacle(folder: Path) -> str | None:
    """Why a folder cannot be written to; None if it looks writable."""
    try:
        home = next(part for part in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(part))
        if not home.is_dir():
            return f"{home} is not a folder"
        if not os.access(home, os.W_OK | os.X_OK):
            return f"{home} may not be written to"
    except ValueError:  # a null byte
        return "no file name may hold a null byte"
    except OSError as error:
        return str(error.strerror)
    return None


@contextmanager
def made_folder(folder: Path, error: type[SpatialForcingError] = SpatialForcingError) -> Iterator[None]:
    """Creates a folder if missing; removes it again if the block fails and leaves it empty.

    Raises:
        SpatialForcingError: it cannot be made.
    """
    check_folder(folder, error)
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise error(
            f"{folder} cannot be made: {reason.strerror or reason}. Choose another folder."
        ) from reason
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody's file is in it
            for part in made:
                part.rmdir()
        raise


@contextmanager
def filled_folder(folder: Path, error: type[SpatialForcingError] = SpatialForcingError) -> Iterator[Path]:
    """Fills a folder as a whole: gives one beside it, whose files get there when the block has ended.

    A block that fails leaves nothing. Files that the folder has already stay, unless one is of the same name.

    Raises:
        SpatialForcingError: the folder cannot be written, or a file of the block's could not be.
    """
    folder = folder.absolute()
    with made_folder(folder.parent, error):
        beside = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            beside.mkdir()
            yield beside
            if folder.exists():
                for path in beside.iterdir():
                    path.replace(folder / path.name)
            else:
                beside.rename(folder)
        except (OSError, SafetensorError) as reason:
            raise error(
                f"{folder} could not be written ({reason}); nothing is left of it. Free some space or choose "
                "a folder on another disk, and run the same command again."
            ) from reason
        finally:
            shutil.rmtree(beside, ignore_errors=True)


# ---- a folder for one job
# ----------------------------------------------------------------------------------------------------------

ELSEWHERE = "Choose another folder, or delete this one."


def claim(
    path: Path,
    specification: Mapping[str, Any],
    *,
    what: str,
    only: bool = False,
    beside: tuple[str, ...] = (),
    unrecorded: tuple[str, ...] = (),
    error: type[SpatialForcingError] = SpatialForcingError,
) -> bool:
    """Claims a folder for one job: writes a note of its content, or checks that the note there is the same.

    Args:
        path: the JSON file; its folder is made if missing.
        specification: what decides the content, as plain data.
        what: kind of content, for messages: "run".
        only: a folder with visible files but without the note is refused.
        beside: names that a note may have besides those of the specification.
        unrecorded: names that an earlier version did not note.
        error: what to raise.

    Returns:
        Whether the note is new.

    Raises:
        SpatialForcingError: the folder holds something else, with what differs; nothing was changed.
    """
    folder = path.parent
    check_folder(folder, error)
    new = False
    if not path.is_file():
        if only and folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise error(
                f"{folder} is not empty and holds no {what} (no {path.name}). Choose a new or empty folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(specification, indent=1)
        new = create_once(path, lambda temporary: temporary.write_text(text), error=error)
    found = read_json(path, ELSEWHERE, error)  # of another process, if that was first
    found = {name: value for name, value in found.items() if name not in beside}
    check_same(folder, found, specification, what=what, unrecorded=unrecorded, error=error)
    return new


def check_same(
    folder: Path,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    what: str,
    unrecorded: tuple[str, ...] = (),
    advice: str | None = None,
    error: type[SpatialForcingError] = SpatialForcingError,
) -> None:
    """Raises, naming all that differs, unless what a folder holds is what is wanted; see :func:`claim`.

    Args:
        folder: what is named.
        found, wanted: what it says that it holds, and what is wanted.
        what, unrecorded, error: see :func:`claim`.
        advice: what to do; another folder if None.
    """
    wanted = json.loads(json.dumps(wanted))
    wanted = {name: value for name, value in wanted.items() if name in found or name not in unrecorded}
    differing = "; ".join(differences(found, wanted))
    if differing:
        raise error(
            f"{folder} already holds another {what} ({differing}). Nothing was changed. {advice or ELSEWHERE}"
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Differences between two nested mappings, as text: "spec.episodes: 3 there, 4 wanted". Of lists of
    words, such as flags, only what the other one has not."""
    for name in sorted({*found, *wanted}):
        there, here = found.get(name), wanted.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from differences(there, here, f"{prefix}{name}.")
        elif isinstance(there, list) and isinstance(here, list) and there != here:
            if all(isinstance(one, int | float) for one in (*there, *here)):
                yield f"{prefix}{name}: {there} there, {here} wanted"
                continue
            own, new = ([one for one in a if one not in b] for a, b in ((there, here), (here, there)))
            if not own and not new:  # the same in another order
                own, new = there, here
            yield f"{prefix}{name}: {own} there, {new} wanted"
        elif there != here:
            yield f"{prefix}{name}: {there!r} there, {here!r} wanted"
