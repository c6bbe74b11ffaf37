"""Summary statistics of runs and episodes with missing values: means, rates, amounts of data."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from statistics import fmean, median
from typing import Literal

from spatial_forcing.estimates import Episodes, Estimate, rate
from spatial_forcing.report.records import Points, Spread
from spatial_forcing.results import Episode, RunResults
from spatial_forcing.stats import Interval


def finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def mean_of_known(values: Iterable[float | None], unit: float = 1) -> float | None:
    """Mean of the known values, converted to another unit; None if there are none."""
    known = [value for value in values if value is not None and isfinite(value)]
    return unit * fmean(known) if known else None


def median_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return median(known) if known else None


def known_points(points: Iterable[tuple[float, float | None]]) -> Points:
    """The points that have a value."""
    return [(x, y) for x, y in points if y is not None and isfinite(y)]


def rollouts(episodes: Sequence[Episode]) -> Episodes:
    """Successes of one run, 0 or 1, by task and seed of the episode."""
    return {(e.task, e.seed): float(e.success) for e in episodes}


def success(by_seed: Mapping[int, Sequence[Episode]]) -> Interval | None:
    """Success rate over the runs of several training seeds; None without episodes."""
    table = {seed: rollouts(episodes) for seed, episodes in by_seed.items() if episodes}
    return rate(table) if table else None


def phases(by_seed: Mapping[int, Sequence[Episode]]) -> dict[str, Interval]:
    """Rates of the phases that episodes came to, in their order; {} where an environment tells none."""
    told = {s: [e for e in of if e.phases is not None] for s, of in by_seed.items()}
    names = dict.fromkeys(name for of in told.values() for e in of for name in e.phases or ())
    found = {}
    for name in names:
        table: dict[int, Episodes] = {
            s: {(e.task, e.seed): float(e.phases[name]) for e in of if e.phases and name in e.phases}
            for s, of in told.items()
        }
        found[name] = rate({s: by for s, by in table.items() if by})
    return found


def spread(found: Estimate, unit: float = 1) -> Spread:
    """Converts an estimate to a record, in another unit."""
    value, low, high = (None if x is None else unit * x for x in (found.value, found.low, found.high))
    return Spread(value=value, low=low, high=high)


def data_unit(runs: Sequence[RunResults]) -> Literal["episodes", "% of the data"]:
    """Unit of the amount of data: episodes where all runs give their number."""
    return "episodes" if all(run.train_episodes for run in runs) else "% of the data"


def amount_of_data(run: RunResults, unit: str) -> int:
    """Amount of data that a run was trained on."""
    return run.train_episodes or 0 if unit == "episodes" else round(100 * run.fraction)
