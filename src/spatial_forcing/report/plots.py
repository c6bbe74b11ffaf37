"""Curves of the report as SVG: one quantity per plot, one colour and marker per arm.

With several seeds a line is their mean and the band around it runs from the lowest seed to the highest; of
many arms the lines alone are drawn. Controls are dotted, references dashed.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from spatial_forcing.plot_style import style
from spatial_forcing.probe.figures import layer_plot
from spatial_forcing.report.figure import DASHES, axes, colours, markers, svg
from spatial_forcing.report.forest import draw_forests
from spatial_forcing.report.records import ArmSummary, Points, Series, Summary
from spatial_forcing.stats import wilson

# Curves are smoothed by a running mean over this share of their points.
SMOOTHING = 0.08
# Of more arms than these, bands would hide the lines.
BANDS = 8
LABELS = {
    "action_loss": "training action loss",
    "cosine": "cosine with the target",
    "gradient_ratio": "gradient norm, alignment : action",
    "gradient_cosine": "cosine of the two gradients",
    "cka": "CKA of host and teacher",
    "effective_rank": "effective rank of the tokens",
    "heldout_error": "held-out action error",
    "heldout_loss": "held-out loss",
    "success": "success (%)",
    "closest_distance_cm": "closest distance (cm)",
}
# Drawn whether measured or not; others only if they are.
ALWAYS = ("heldout_error", "success", "action_loss")
FROM_ZERO = ("action_loss", "heldout_error", "closest_distance_cm")


def draw_plots(summary: Summary) -> dict[str, str | None]:
    """Draws all curves as SVG text, by name; None for a standard one without data."""
    arms, data = summary.arms, summary.plots
    with style():
        found: dict[str, str | None] = {**draw_forests(summary)}
        found |= {name: draw_measured(arms, name, series, summary) for name, series in data.measured.items()}
        found |= {name: draw_logged(arms, name, series) for name, series in data.logged.items()}
        for name, series in data.by_data.items():
            found[f"data_{name}"] = draw_by_data(arms, name, series, data.data_unit or "")
        if data.probe_sites and data.probe_sites.stacks:
            found["probe_sites"] = svg(layer_plot(data.probe_sites))
    usual = dict.fromkeys(ALWAYS)
    return usual | {name: text for name, text in found.items() if text is not None}


def label_of(name: str) -> str:
    """Axis label of a quantity."""
    return LABELS.get(name) or name.replace("_", " ")


def draw_logged(arms: Mapping[str, ArmSummary], name: str, series: Series) -> str | None:
    """Plots a quantity logged during training, smoothed; with one seed, the raw values behind it."""
    if not any(series.values()):
        return None
    axis = axes()[0]
    for arm, by_seed in series.items():
        look = {"color": colours(list(arms))[arm], "linewidth": 1.6, "linestyle": DASHES[arms[arm].role]}
        if len(by_seed) == 1:
            steps, values = zip(*next(iter(by_seed.values())), strict=True)
            axis.plot(steps, values, linewidth=0.6, alpha=0.3, color=look["color"])
        _band(
            axis, {seed: smooth(points) for seed, points in by_seed.items()}, len(series), label=arm, **look
        )
    _over_steps(axis, arms, name)
    return svg(axis)


def draw_measured(arms: Mapping[str, ArmSummary], name: str, series: Series, summary: Summary) -> str | None:
    """Plots a quantity measured at some steps; references as horizontal lines at their last value."""
    if not any(series.values()):
        return None
    axis, colour = axes()[0], colours(list(arms))
    moving = [arm for arm, by_seed in series.items() if by_seed and arms[arm].role != "reference"]
    for arm, by_seed in series.items():
        if by_seed and arms[arm].role == "reference":
            last = fmean(points[-1][1] for points in by_seed.values())
            axis.axhline(last, color=colour[arm], linestyle="--", linewidth=1.3, label=arm)
        elif by_seed:
            _marked(axis, arms, arm, by_seed, _width(moving.index(arm), len(moving)))
            if name == "success" and len(by_seed) == 1:
                apart = 0.008 * summary.arms[arm].steps * (moving.index(arm) - (len(moving) - 1) / 2)
                _wilson_bars(axis, next(iter(by_seed.values())), summary.arms[arm], apart, colour[arm])
    _over_steps(axis, arms, name)
    if name == "success":
        axis.set_ylim(-3, 103)
    return svg(axis)


def draw_by_data(arms: Mapping[str, ArmSummary], name: str, series: Series, unit: str) -> str | None:
    """Plots a quantity at the end of training over the amount of data."""
    if not any(series.values()):
        return None
    axis = axes()[0]
    for number, (arm, by_seed) in enumerate(series.items()):
        if by_seed:
            _marked(axis, arms, arm, by_seed, _width(number, len(series)))
    amounts = sorted({x for of in series.values() for points in of.values() for x, _ in points})
    axis.set(xlabel=f"training {unit}" if unit == "episodes" else unit, ylabel=label_of(name), xscale="log")
    axis.set_xticks(amounts, [f"{x:g}" for x in amounts])
    axis.minorticks_off()
    axis.legend()
    if name in FROM_ZERO:
        axis.set_ylim(bottom=0)
    return svg(axis)


def band(by_seed: Mapping[int, Points]) -> list[tuple[float, float, float, float]]:
    """(x, mean, lowest, highest) over the seeds that have a value at x."""
    values: dict[float, list[float]] = {}
    for points in by_seed.values():
        for x, y in points:
            values.setdefault(x, []).append(y)
    return [(x, fmean(of), min(of), max(of)) for x, of in sorted(values.items())]


def smooth(points: Points) -> Points:
    """Smooths points by running means."""
    return [(x, y) for (x, _), y in zip(points, running_mean([y for _, y in points]), strict=True)]


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred means over a window that shrinks at both ends, so that the ends are not pulled to zero."""
    half = int(SMOOTHING * len(values) / 2)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _width(number: int, count: int) -> float:
    """Line width of one of several arms; later ones are thinner, so that an equal one below is seen."""
    return 1.3 + 1.1 * (count - 1 - number) / max(1, count - 1)


def _marked(
    axis, arms: Mapping[str, ArmSummary], arm: str, by_seed: Mapping[int, Points], width: float
) -> None:
    """Draws an arm's line, with its marker where it was measured."""
    look = {"color": colours(list(arms))[arm], "marker": markers(list(arms))[arm], "markersize": 3.5 * width}
    look |= {"linestyle": DASHES[arms[arm].role], "linewidth": width}
    _band(axis, by_seed, len(arms), label=arm, **look)


def _band(axis, by_seed: Mapping[int, Points], lines: int, **look) -> None:
    """Draws one of several lines, with its band unless bands would cover each other."""
    rows = band(by_seed)
    if rows:
        x, mean, low, high = zip(*rows, strict=True)
        axis.plot(x, mean, **look)
        if len(by_seed) > 1 and lines <= BANDS:
            axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _wilson_bars(axis, points: Points, arm: ArmSummary, apart: float, colour: str) -> None:
    """Draws Wilson intervals of one seed's rates, offset slightly so that bars do not overlap."""
    if arm.success is None:
        return
    rates = [
        wilson(round(percent * arm.success.episodes / 100), arm.success.episodes) for _, percent in points
    ]
    below, above = [100 * (r.rate - r.low) for r in rates], [100 * (r.high - r.rate) for r in rates]
    steps = [step + apart for step, _ in points]
    look = {"fmt": "none", "capsize": 3, "elinewidth": 1, "ecolor": colour}
    axis.errorbar(steps, [100 * r.rate for r in rates], [below, above], **look)


def _over_steps(axis, arms: Mapping[str, ArmSummary], name: str) -> None:
    """Formats a plot over steps: the same range in all plots, a legend, and zero in view where meaningful."""
    axis.set(xlabel="training step", ylabel=label_of(name))
    axis.set_xlim(0, 1.02 * max(arm.steps for arm in arms.values()))
    axis.legend()
    if name in FROM_ZERO:
        axis.set_ylim(bottom=0)
