"""One malformed input: what is given, and what must be said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError

KINDS = (
    "name",
    "type",
    "number",
    "size",
    "encoding",
    "permission",
    "full disk",
    "damaged",
    "foreign",
    "device",
    "taken",
    "missing",
)


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        of: what gets it: a command, or a part of the API.
        kind: what is wrong with it, one of KINDS.
        says: what the message must hold; ``{here}`` and the names of :class:`bench.Bench` are filled in.
        argv: the words of a command, filled in alike; or
        call: what to call, with the bench and the case's own folder.
        prepare: makes what the case needs in its own folder, ``here``.
        error: what ``call`` must raise.
        under: limits of the process: "no rights" (file modes count, even for root), "full disk" (no file may
            grow beyond some KiB), or "a process" (the command as installed, in a process of its own).
        environment: variables of the process.
        afterwards: a command that must succeed after the failure.
    """

    of: str
    kind: str
    says: str | tuple[str, ...]
    argv: tuple[str, ...] = ()
    call: Callable[[Any, Path], Any] | None = None
    prepare: Callable[[Any, Path], Any] | None = None
    error: type[Exception] = SpatialForcingError
    under: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    afterwards: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind
        assert bool(self.argv) != bool(self.call) or self.argv == ()


def command(
    of: str, kind: str, words: str, says: str | tuple[str, ...], *, about: str = "", **more: Any
) -> Case:
    """A case from a command line; words are parted by blanks, and ``''`` is an empty word. ``about``: what
    is special in it, for its name."""
    argv = tuple("" if word == "''" else word for word in words.split())
    name = f"{of}: {about.strip() or words or 'nothing'}"
    if prepare := getattr(more.get("prepare"), "label", ""):
        name += f" [{prepare}]"
    if more.get("under"):
        name += f" ({more['under']})"
    return Case(of, kind, says, argv=argv, name=name, **more)


def api(of: str, kind: str, name: str, call: Callable[[Any, Path], Any], says: str, **more: Any) -> Case:
    """A case from a call."""
    return Case(of, kind, says, call=call, name=f"{of}: {name}", **more)
