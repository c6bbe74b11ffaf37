"""Oriented boxes around things in a scene: their corners, and how far a point is from them.

World coordinates, metres. Shapes: N corners.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

FAR = 1.0  # metres; what is farther from everything counts as so far


class Box(NamedTuple):
    """An oriented box.

    Attributes:
        centre_3: metres, world.
        rotation_33: its axes in the world, as columns.
        half_3: half of its sides, metres; infinite for a pillar.
    """

    centre_3: np.ndarray
    rotation_33: np.ndarray
    half_3: np.ndarray

    @property
    def corners_83(self) -> np.ndarray:
        """Its eight corners."""
        signs_83 = np.array(list(product((-1, 1), repeat=3)))
        return (signs_83 * self.half_3) @ self.rotation_33.T + self.centre_3

    @property
    def pillar(self) -> "Box":
        """What stands above and below it: its footprint along the world's x and y axes, at every height."""
        low_3, high_3 = extent(self.corners_83)
        half_3 = np.array([*(high_3 - low_3)[:2] / 2, np.inf])
        return Box((low_3 + high_3) / 2, np.eye(3), half_3)


def extent(corners_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest coordinates of points."""
    return corners_N3.min(axis=0), corners_N3.max(axis=0)


def clearance(boxes: Sequence[Box], point_3: np.ndarray) -> float:
    """Distance from a point to the nearest box, metres, at most ``FAR``; 0 inside of one."""
    outside = (
        np.maximum(np.abs((point_3 - box.centre_3) @ box.rotation_33) - box.half_3, 0) for box in boxes
    )
    return min((float(np.linalg.norm(beyond_3)) for beyond_3 in outside), default=FAR)
