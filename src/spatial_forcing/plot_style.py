"""Matplotlib style of all plots: fonts, axes, grid."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spatial_forcing.errors import MissingDependencyError

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "spatial-forcing",
}


@contextmanager
def style() -> Iterator[None]:
    """Context with the package's matplotlib style.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report") from error
    with matplotlib.rc_context(STYLE):
        yield
