"""Matplotlib style of all plots: fonts, axes, grid."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spatial_forcing.errors import MissingDependencyError

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
KNOWN_COLOURS = {
    "plain": "#D55E00",
    "baseline": "#D55E00",
    "forced": "#0072B2",
    "shuffled": "#CC79A7",
    "place": "#E69F00",
    "blind": "#6B6B6B",
    "state": "#009E73",
}
OTHER_COLOURS = ("#56B4E9", "#000000", "#8C510A", "#5E3C99", "#882255", "#999933", "#44AA99", "#332288")
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


def colours(names: Sequence[str]) -> dict[str, str]:
    """A fixed colour for each arm; the usual arms always have their own."""
    others = [name for name in names if name not in KNOWN_COLOURS]
    mixed = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: KNOWN_COLOURS.get(name) or mixed[name] for name in names}
