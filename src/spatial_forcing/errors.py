"""Errors that tell a person what was expected, what was found, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class SpatialForcingError(Exception):
    """Base class of every error this package raises on purpose."""


class UnknownNameError(SpatialForcingError, KeyError):
    """A teacher, host, task or option was asked for by a name that does not exist."""

    def __init__(self, kind: str, name: object, available: Iterable[str]):
        names = sorted(str(n) for n in available)
        near = get_close_matches(str(name), names, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}.")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return self.args[0]


class MissingDependencyError(SpatialForcingError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'This needs {package}. Install it with: pip install "spatial-forcing[{extra}]"')
