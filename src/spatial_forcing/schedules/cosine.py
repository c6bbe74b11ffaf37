"""Cosine schedule: the weight goes from one value to another along half a cosine, slowly at both ends."""

import math
from dataclasses import dataclass

from spatial_forcing.schedules.linear import Linear


@dataclass(frozen=True)
class Cosine(Linear):
    """Cosine schedule: ``initial`` up to step ``start``, ``final`` from ``end`` on, half a cosine between."""

    def part(self, step: int) -> float:
        """Progress from ``initial`` to ``final`` at a step, 0 to 1."""
        return (1 - math.cos(math.pi * super().part(step))) / 2


SCHEDULE = Cosine
