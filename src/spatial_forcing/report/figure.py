"""Helpers of the report's figures: colours and markers of arms, axes, SVG text."""

import io
from collections.abc import Sequence
from typing import Any

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
OTHER_COLOURS = ("#56B4E9", "#000000", "#8C510A", "#5E3C99")
DASHES = {"arm": "-", "control": ":", "reference": "--"}
MARKERS = "osD^vPX*"
SIZE = (5.2, 3.1)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A fixed colour for each arm; the usual arms always have their own."""
    others = [name for name in names if name not in KNOWN_COLOURS]
    mixed = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: KNOWN_COLOURS.get(name) or mixed[name] for name in names}


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
