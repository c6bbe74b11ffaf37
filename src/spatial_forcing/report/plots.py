"""The report's plots, as SVG: one quantity each, one colour and marker an arm.

Controls are dotted, references dashed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.report.records import ArmSummary, RatePoint, Summary

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
KNOWN_COLOURS = {
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
# A running mean over this share of the points is drawn over the points themselves.
SMOOTHING = 0.08
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
SIZE = (5.2, 3.1)

Points = Sequence[tuple[float, float]]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A fixed colour for each arm; the usual arms always have their own."""
    others = [name for name in names if name not in KNOWN_COLOURS]
    mixed = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: KNOWN_COLOURS.get(name) or mixed[name] for name in names}


def draw_plots(summary: Summary) -> dict[str, str | None]:
    """All plots as SVG text by name; None where no arm has a point."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report") from error
    arms, data = summary.arms, summary.plots
    with matplotlib.rc_context(STYLE):
        return {
            "action_loss": draw_curves(arms, data.action_loss, "training action loss", from_zero=True),
            "heldout_error": draw_measured(arms, data.heldout_error, "held-out action error"),
            "success": draw_success(arms, data.success),
            "closest_distance": draw_measured(arms, data.closest_distance_cm, "closest distance (cm)"),
            "cosine": draw_curves(arms, data.cosine, "cosine with the teacher"),
            "gradient_ratio": draw_curves(arms, data.gradient_ratio, "gradient norm, alignment : action"),
        }


def draw_curves(
    arms: Mapping[str, ArmSummary], curves: Mapping[str, Points], label: str, from_zero: bool = False
) -> str | None:
    """Quantities logged during training: thin as logged, thick as a running mean."""
    if not any(curves.values()):
        return None
    axis = _axis(arms, label)
    for name, points in curves.items():
        if points:
            steps, values = zip(*points, strict=True)
            look = {"color": colours(list(arms))[name]}
            axis.plot(steps, values, linewidth=0.6, alpha=0.3, **look)
            axis.plot(steps, running_mean(values), DASHES[arms[name].role], linewidth=1.6, label=name, **look)
    if from_zero:
        axis.set_ylim(bottom=0)
    return _svg(axis)


def draw_measured(arms: Mapping[str, ArmSummary], curves: Mapping[str, Points], label: str) -> str | None:
    """Quantities measured at some steps; references as horizontal lines at their last value."""
    if not any(curves.values()):
        return None
    axis = _axis(arms, label)
    for i, (name, points) in enumerate(curves.items()):
        colour = colours(list(arms))[name]
        if points and arms[name].role == "reference":
            axis.axhline(points[-1][1], color=colour, linestyle="--", linewidth=1.3, label=name)
        elif points:
            steps, values = zip(*points, strict=True)
            look = {"linestyle": DASHES[arms[name].role], "color": colour}
            axis.plot(steps, values, marker=MARKERS[i % len(MARKERS)], markersize=5, label=name, **look)
    axis.set_ylim(bottom=0)
    return _svg(axis)


def draw_success(arms: Mapping[str, ArmSummary], rates: Mapping[str, Sequence[RatePoint]]) -> str | None:
    """Success rates with Wilson intervals, the arms set slightly apart; references as horizontal lines."""
    if not any(rates.values()):
        return None
    moving = [name for name, points in rates.items() if points and arms[name].role != "reference"]
    axis = _axis(arms, "success (%)")
    for i, (name, points) in enumerate(rates.items()):
        colour = colours(list(arms))[name]
        if points and arms[name].role == "reference":
            axis.axhline(100 * points[-1].rate, color=colour, linestyle="--", linewidth=1.3, label=name)
        elif points:
            apart = 0.008 * axis.get_xlim()[1] * (moving.index(name) - (len(moving) - 1) / 2)
            steps = [p.step + apart for p in points]
            rate = [100 * p.rate for p in points]
            below = [100 * (p.rate - p.low) for p in points]
            above = [100 * (p.high - p.rate) for p in points]
            look = {"linestyle": DASHES[arms[name].role], "color": colour}
            axis.plot(steps, rate, marker=MARKERS[i % len(MARKERS)], markersize=5, label=name, **look)
            axis.errorbar(steps, rate, [below, above], fmt="none", capsize=3, elinewidth=1, ecolor=colour)
    axis.set_ylim(-3, 103)
    return _svg(axis)


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred means over a window that shrinks at both ends, so that the ends are not pulled to zero."""
    half = int(SMOOTHING * len(values) / 2)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _axis(arms: Mapping[str, ArmSummary], label: str) -> Any:
    """An axis over the training steps, the same for all plots."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Made by hand and not through pyplot, so that nobody's backend or open figures are touched.
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    axis.set(xlabel="training step", ylabel=label, xlim=(0, 1.02 * max(arm.steps for arm in arms.values())))
    return axis


def _svg(axis: Any) -> str:
    axis.legend()
    text = io.StringIO()
    # Without date and version, equal results give equal files.
    axis.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
