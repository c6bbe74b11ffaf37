"""Files and folders that people name: checked before work begins, with errors that say which."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError


def read_json(
    path: Path, advice: str = "", error: type[SpatialForcingError] = SpatialForcingError
) -> dict[str, Any]:
    """The object in a JSON file.

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


def check_folder(folder: Path, error: type[SpatialForcingError] = SpatialForcingError) -> None:
    """Raises unless ``folder`` is one that can be written to, or can be made. Changes nothing."""
    reason = _obstacle(folder)
    if reason:
        raise error(f"{folder} cannot be written to: {reason}. Choose another folder.")


def _obstacle(folder: Path) -> str | None:
    """Why nothing can be written to a folder; None if it looks as if it could."""
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
    """A folder, made if missing; what was made goes away again if the block fails and leaves it empty.

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
