"""Specification of demonstrations in LIBERO: the options of ``spatial-forcing libero collect``."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.libero.rendering import check_rendering
from spatial_forcing.libero.suites import EXPERT_SUITES, check_numbers, check_suite

STARTS = ("random", "fixed")


@dataclass(frozen=True, kw_only=True)
class LiberoSpec:
    """Specification of demonstrations; with the versions and the assets it determines every byte.

    Raises:
        UnknownNameError: an unknown suite, start or rendering.
        SpatialForcingError: an invalid number.
    """

    suite: str = "libero_object"
    """libero_object or libero_spatial: the suites whose tasks the expert solves."""
    tasks: tuple[int, ...] = ()
    """Numbers of its tasks, from 0; all if empty."""
    episodes: int = 20
    """Demonstrations per task; all of them solve it."""
    size: int = 256
    """Height and width of images, pixels; 256 is that of the public data set."""
    start: Literal["random", "fixed"] = "random"
    """Where objects are at first: placed at random, as for LIBERO's own demonstrations, or as in its fixed
    initial states, which evaluations start from."""
    rendering: Literal["stock", "cheap"] = "stock"
    """stock is what lerobot-eval shows; cheap draws without antialiasing, shadows and reflections, which is
    faster. Evaluate with the same."""
    seed: int = 0
    """Seed of the first attempt at each task; attempt i has seed + i."""

    def __post_init__(self):
        check_suite(self.suite, EXPERT_SUITES)
        check_rendering(self.rendering)
        if self.start not in STARTS:
            raise UnknownNameError("start", self.start, STARTS)
        for name, least in (("episodes", 1), ("size", 16), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise SpatialForcingError(f"{name} is a whole number; got {value!r}.")
            if value < least:
                raise SpatialForcingError(f"{name} must be at least {least}; got {value}.")
        check_numbers(self.suite, self.tasks)
