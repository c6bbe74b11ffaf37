"""Linear schedule: the weight goes from one value to another in a straight line."""

from dataclasses import dataclass

from spatial_forcing.ranges import checked_span, checked_weight


@dataclass(frozen=True)
class Linear:
    """Linear schedule: ``initial`` up to step ``start``, ``final`` from ``end`` on, a straight line between.

    Attributes:
        initial, final: weights, finite, 0 or more.
        start, end: steps, start before end.
    """

    initial: float
    final: float
    end: int
    start: int = 0

    def __post_init__(self) -> None:
        checked_weight(self.initial)
        checked_weight(self.final)
        checked_span(self.start, self.end)

    def part(self, step: int) -> float:
        """Progress from ``initial`` to ``final`` at a step, 0 to 1."""
        return min(max((step - self.start) / (self.end - self.start), 0.0), 1.0)

    def __call__(self, step: int) -> float:
        return self.initial + self.part(step) * (self.final - self.initial)


SCHEDULE = Linear
