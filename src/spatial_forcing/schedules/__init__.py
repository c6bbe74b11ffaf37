"""Schedules of the loss weight as a function of the training step, one per file, by name.

A schedule is anything that maps a step, counted from 0, to a weight, 0 or more. As text, for flags and files:

    linear:initial=0.5,final=0,start=1000,end=3000

is the schedule ``linear`` made with these options. A plain number is a weight that stays. Adding a schedule
is adding a file here with ``SCHEDULE = <what makes one of numbers given by name>``, or an entry point in the
group ``spatial_forcing.schedules`` of another package.
"""

import inspect
from collections.abc import Callable

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.ranges import checked_weight
from spatial_forcing.registry import Functions

Schedule = Callable[[int], float]
Weight = float | str | Schedule

SCHEDULES = Functions[Callable[..., Schedule]]("schedule", attribute="SCHEDULE", package=__name__)


def schedule_of(weight: Weight) -> float | Schedule:
    """Parses a weight: a constant number, or a schedule.

    Args:
        weight: a number, text (see above), or a schedule.

    Raises:
        UnknownNameError: no schedule of that name.
        SpatialForcingError: a weight that is not finite or below 0, or options that the schedule does not
            take.
    """
    if isinstance(weight, str):
        try:
            weight = float(weight)
        except ValueError:
            return _parsed(weight)
    if callable(weight):
        return weight
    return checked_weight(weight)


def weight_at(schedule: float | Schedule, step: int) -> float:
    """The loss weight at a training step.

    Raises:
        SpatialForcingError: a schedule gave something that is no weight.
    """
    return checked_weight(schedule(step)) if callable(schedule) else schedule


def _parsed(text: str) -> Schedule:
    name, _, options = text.partition(":")
    name = name.strip()
    if name not in SCHEDULES:
        raise UnknownNameError("schedule (and no number)", name, SCHEDULES)
    make = SCHEDULES[name]
    takes = inspect.signature(make).parameters
    given: dict[str, float] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, _, value = (part.strip() for part in option.partition("="))
        number = _number(value)
        if key in given or key not in takes or number is None:
            raise SpatialForcingError(
                f"{option!r} in the schedule {text!r} is not understood. {_spelling(name, takes)}"
            )
        given[key] = number
    missing = [key for key, p in takes.items() if p.default is p.empty and key not in given]
    if missing:
        raise SpatialForcingError(
            f"The schedule {text!r} does not say {', '.join(missing)}. {_spelling(name, takes)}"
        )
    return make(**given)


def _number(text: str) -> float | None:
    """Parses a number, as int where it is whole; None for other text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _spelling(name: str, takes: "inspect._ParameterMapping") -> str:
    options = ",".join(
        f"{key}=<number>" if p.default is p.empty else f"{key}={p.default}" for key, p in takes.items()
    )
    return f"Write it as {name}:{options}, each option once."
