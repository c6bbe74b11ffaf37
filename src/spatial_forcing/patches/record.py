"""Patch records, and the functions that apply and undo patches of LeRobot.

A patch replaces an attribute of a class or module of LeRobot's. Before it does, it looks whether LeRobot
still is what the patch relies on; if not, :class:`LeRobotChanged` says what differs and what is off because
of it.
"""

import inspect
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any

from spatial_forcing.errors import SpatialForcingError


@dataclass(frozen=True)
class Patch:
    """Record of one monkey patch of LeRobot.

    Attributes:
        name: its name.
        target: what of LeRobot is replaced.
        what: what is different with it.
        why: what it is for, and why nothing LeRobot offers would do.
        when: the moment at which it is switched on, and by whom.
        versions: LeRobot's versions that it was tried with.
        upstream: what LeRobot would have to offer for it to go.
        without: what is off, or refused, where it cannot be put in place.
    """

    name: str
    target: str
    what: str
    why: str
    when: str
    versions: str
    upstream: str
    without: str


class LeRobotChanged(SpatialForcingError):
    """LeRobot has changed in something that a patch relies on."""

    def __init__(self, patch: Patch, difference: str):
        try:
            release = version("lerobot")
        except PackageNotFoundError:
            release = "of unknown version"
        super().__init__(
            f"LeRobot has changed ({release} is installed): {difference}, which the patch {patch.name!r} "
            f"relies on. {patch.without} It is known to work with LeRobot {patch.versions}."
        )


def lerobots(patch: Patch, module: str, path: str, *takes: str) -> Any:
    """Looks up what a patch relies on: the object at ``path`` in a module of LeRobot's.

    Args:
        takes: names of parameters that it must have.

    Raises:
        LeRobotChanged: there is no such object, or it takes something else.
    """
    try:
        found = attrgetter(path)(import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # a dependency of the module is not installed
        raise LeRobotChanged(patch, f"there is no {module}") from error
    except AttributeError as error:
        raise LeRobotChanged(patch, f"{module} has no {path}") from error
    if takes:
        has = list(inspect.signature(found).parameters)
        if missing := [name for name in takes if name not in has]:
            raise LeRobotChanged(
                patch,
                f"{module}.{path} takes ({', '.join(has)}) and no {' or '.join(missing)}",
            )
    return found


_MISSING = object()
# In the order in which they were put in place: patch, owner, attribute, what the owner itself had there.
_REPLACED: list[tuple[Patch, Any, str, Any]] = []


def is_on(patch: Patch) -> bool:
    """Whether a patch is applied in this process."""
    return any(replaced is patch for replaced, *_ in _REPLACED)


def replace(patch: Patch, owner: Any, name: str, new: Any) -> None:
    """Replaces the attribute ``name`` of ``owner`` by ``new``, and remembers the original."""
    _REPLACED.append((patch, owner, name, vars(owner).get(name, _MISSING)))
    setattr(owner, name, new)


def undo_all(down_to: int = 0) -> None:
    """Undoes all replacements of this process, or all but the first ``down_to``."""
    while len(_REPLACED) > down_to:
        _, owner, name, before = _REPLACED.pop()
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def replaced() -> list[str]:
    """Names of what is replaced in this process, as ``owner.attribute``."""
    return [f"{getattr(owner, '__name__', owner)}.{name}" for _, owner, name, _ in _REPLACED]
