"""Error classes, whose messages say what was expected, what was found, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec

# What pip installs; LeRobot finds plug-ins by this spelling.
DISTRIBUTION = "lerobot_policy_spatial_forcing"
# So many names are listed whole; of more, the nearest ones.
LISTED_WHOLE, NEAREST = 20, 8


class SpatialForcingError(Exception):
    """Base class of every error this package raises on purpose."""


class UnknownNameError(SpatialForcingError, KeyError):
    """A teacher, host, task or option with this name does not exist.

    ``available`` holds all names that do; the message lists them all if they are few, else the nearest.
    """

    def __init__(self, kind: str, name: object, available: Iterable[str]):
        self.available = tuple(sorted(str(n) for n in available))
        near = get_close_matches(str(name), self.available, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} {self._listed(str(name))}")

    def _listed(self, name: str) -> str:
        if len(self.available) <= LISTED_WHOLE:
            return f"Available: {', '.join(self.available) or 'none'}."
        near = get_close_matches(name, self.available, n=NEAREST, cutoff=0.0)
        return f"The nearest: {', '.join(near)}, and {len(self.available) - NEAREST} more."

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return self.args[0]


class MissingDependencyError(SpatialForcingError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'This needs {package}. Install it with: pip install "{DISTRIBUTION}[{extra}]"')


def check_can_report() -> None:
    """Raises :class:`MissingDependencyError` if what draws reports and figures is not installed; to be called
    before the long work that ends in one."""
    for module in ("matplotlib", "jinja2", "scipy", "pydantic"):
        if find_spec(module) is None:
            raise MissingDependencyError(module, "report")
