"""Helpers of the report's figures: colours and markers of arms, axes, SVG text."""

import io
from collections.abc import Sequence
from typing import Any

from spatial_forcing.plot_style import colours

__all__ = ["DASHES", "axes", "colours", "markers", "svg"]

DASHES = {"arm": "-", "control": ":", "reference": "--"}
MARKERS = "osD^vPX*"
SIZE = (5.2, 3.1)


def markers(names: Sequence[str]) -> dict[str, str]:
    """A marker for each arm."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def axes(count: int = 1, size: tuple[float, float] = SIZE, **options: Any) -> Any:
    """A row of axes of a new figure, as an array; ``options`` as of matplotlib's ``subplots``."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Made by hand and not through pyplot, so that nobody's backend or open figures are touched.
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure.subplots(1, count, squeeze=False, **options)[0]


def svg(axis: Any) -> str:
    """The figure of an axis as SVG text."""
    text = io.StringIO()
    # Without date and version, equal results give equal files.
    axis.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
