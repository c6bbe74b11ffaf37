"""Constant loss weight."""

from dataclasses import dataclass

from spatial_forcing.ranges import checked_weight


@dataclass(frozen=True)
class Constant:
    """The same weight at every step.

    Attributes:
        value: the weight, finite, 0 or more.
    """

    value: float

    def __post_init__(self) -> None:
        checked_weight(self.value)

    def __call__(self, step: int) -> float:
        return self.value


SCHEDULE = Constant
