"""Forest plot of a comparison: differences of every arm and control to the plain arm, with intervals."""

from typing import Any

from spatial_forcing.report.figure import SIZE, axes, colours, svg
from spatial_forcing.report.records import Comparison, Spread, Summary

# Inches per row, and for the axis below.
ROW, AXIS = 0.42, 0.9


def draw_forests(summary: Summary) -> dict[str, str]:
    """Draws forest plots of success and of held-out error, by name; quantities without data are left out.

    Large marks are means with their intervals, small ones single seeds; controls are hollow. A
    shaded side is where an arm is better than the plain one.
    """
    compared = summary.against_plain
    found = {}
    if any(c.difference for c in compared):
        rows = [(c, c.difference, c.by_seed) for c in compared]
        found["forest_success"] = _forest(summary, rows, 1, "success minus that of {} (points)")
    if any(c.errors for c in compared):
        rows = [
            (c, c.errors.difference if c.errors else None, c.errors.by_seed if c.errors else {})
            for c in compared
        ]
        found["forest_error"] = _forest(summary, rows, -1, "held-out error minus that of {}")
    return found


def _forest(
    summary: Summary, rows: list[tuple[Comparison, Spread | None, dict[int, float]]], better: int, label: str
) -> str:
    axis = axes(1, (SIZE[0], AXIS + ROW * len(rows)))[0]
    _panel(axis, summary, rows, better)
    axis.set_xlabel(label.format(summary.plain_arm))
    axis.set_yticks(range(len(rows)), [c.b for c, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    return svg(axis)


def _panel(
    axis: Any,
    summary: Summary,
    rows: list[tuple[Comparison, Spread | None, dict[int, float]]],
    better: int,
) -> None:
    colour = colours(list(summary.arms))
    for y, (c, found, by_seed) in enumerate(rows):
        if found is None or found.value is None:
            axis.text(0, y, " not compared", va="center", color="0.4", fontsize=8)
            continue
        if found.low is not None and found.high is not None:
            axis.plot([found.low, found.high], [y, y], color=colour[c.b], linewidth=1.6)
        face = "white" if summary.arms[c.b].role == "control" else colour[c.b]
        axis.plot(found.value, y, "o", color=colour[c.b], markerfacecolor=face, markersize=7, zorder=3)
        if len(by_seed) > 1:
            axis.plot(list(by_seed.values()), [y + 0.25] * len(by_seed), ".", color=colour[c.b], alpha=0.6)
    axis.axvline(0, color="0.3", linewidth=1)
    # Zero in the middle, so that gains and losses of one size look alike.
    limit = max(abs(x) for x in (*axis.get_xlim(), 1e-9))
    axis.set_xlim(-limit, limit)
    axis.axvspan(0, better * limit, color="0.95", zorder=0)
    axis.grid(axis="y", visible=False)
