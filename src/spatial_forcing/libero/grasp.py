"""Grasps from above: where the gripper closes, and how it is turned, clear of what stands around.

Candidates are turns of the gripper; the best has the most room for the fingers and turns the wrist least. A
bowl is taken by its rim, one finger inside and one outside; anything else across its narrowest side.

World coordinates, metres; z is up. Shapes: N corners of boxes.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spatial_forcing.libero.boxes import Box, clearance, extent

# Metres: of a bowl's rim from its middle, and how far the fingers reach below its top, or that of other
# things.
RIM, RIM_DEPTH, DEPTH = 0.0465, 0.024, 0.03
OPENING = 0.072  # metres between the open fingers that an object may fill
ENOUGH = 0.03  # metres of room; more is no better
FLOOR = 0.010  # metres that the fingers stay above the lowest of an object
AROUND_RIM, ACROSS = 16, 36  # candidates


class Pose(NamedTuple):
    """Where the gripper is, and its axes as columns: fingers open along x, z points to what is grasped."""

    position_3: np.ndarray
    rotation_33: np.ndarray


def pointing_down(angle: float, rotation_33: np.ndarray) -> tuple[np.ndarray, float]:
    """The gripper's rotation that points down with its fingers along a direction.

    Args:
        angle: of the direction in the world's x-y plane, radians; fingers are alike, so modulo pi.
        rotation_33: the present one; of the two that will do the nearer is taken.

    Returns:
        The rotation, and by how much the wrist turns, from -pi/2 to pi/2.
    """
    now = np.arctan2(rotation_33[1, 0], rotation_33[0, 0])
    turn = (angle - now + np.pi / 2) % np.pi - np.pi / 2
    x_3 = np.array([np.cos(now + turn), np.sin(now + turn), 0.0])
    z_3 = np.array([0.0, 0.0, -1.0])
    return np.stack([x_3, np.cross(z_3, x_3), z_3], axis=1), float(turn)


def rim_grasp(centre_2: np.ndarray, top: float, around: Sequence[Box], hand: Pose) -> Pose:
    """A grasp of a bowl by its rim.

    Args:
        centre_2: the bowl's middle.
        top: the height of its rim.
        around: what else is there.
        hand: the gripper's present pose.
    """
    z = top - RIM_DEPTH

    def room(outward_2: np.ndarray, side_2: np.ndarray) -> float:
        """For the outer finger and the hand above it, and for their width."""
        outer = [centre_2 + outward_2 * (RIM + by) for by in (0.03, 0.045, 0.06)]
        sides = [centre_2 + outward_2 * RIM + side_2 * by for by in (-0.03, 0.03)]
        return min(clearance(around, np.array([*place_2, z - 0.005])) for place_2 in outer + sides)

    def candidate(angle: float) -> tuple[float, Pose]:
        outward_2, side_2 = _directions(angle)
        rotation_33, turn = pointing_down(angle, hand.rotation_33)
        place_2 = centre_2 + outward_2 * RIM
        way = np.linalg.norm(place_2 - hand.position_3[:2])
        score = 40 * min(room(outward_2, side_2), ENOUGH) - 0.25 * abs(turn) - 0.1 * way
        return float(score), Pose(np.array([*place_2, z]), rotation_33)

    return _best(candidate(2 * np.pi * k / AROUND_RIM) for k in range(AROUND_RIM))


def top_grasp(corners_N3: np.ndarray, around: Sequence[Box], hand: Pose) -> Pose:
    """A grasp from the top, across the narrowest side that has room beside it.

    Args:
        corners_N3: of the object's boxes.
        around: what else is there.
        hand: the gripper's present pose.
    """
    z = top_height(corners_N3)

    def candidate(angle: float) -> tuple[float, Pose]:
        across_2, side_2 = _directions(angle)
        across_N, side_N = corners_N3[:, :2] @ across_2, corners_N3[:, :2] @ side_2
        width = np.ptp(across_N)
        middle_2 = across_2 * (across_N.max() + across_N.min()) / 2
        middle_2 = middle_2 + side_2 * (side_N.max() + side_N.min()) / 2
        rotation_33, turn = pointing_down(angle, hand.rotation_33)
        fingers = [middle_2 + sign * across_2 * by for sign in (-1, 1) for by in (0.04, 0.055)]
        room = min(clearance(around, np.array([*place_2, z])) for place_2 in fingers)
        score = 20 * min(room, ENOUGH) - 20 * width - 0.15 * abs(turn) - 100 * max(0, width - OPENING)
        return float(score), Pose(np.array([*middle_2, z]), rotation_33)

    return _best(candidate(np.pi * k / ACROSS) for k in range(ACROSS))


def top_height(corners_N3: np.ndarray) -> float:
    """How high the fingers close on an object that is taken from the top."""
    low_3, high_3 = extent(corners_N3)
    return float(max(high_3[2] - DEPTH, low_3[2] + FLOOR))


def _directions(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A direction in the plane, and the one to its left."""
    along_2 = np.array([np.cos(angle), np.sin(angle)])
    return along_2, np.array([-along_2[1], along_2[0]])


def _best(candidates: Iterable[tuple[float, Pose]]) -> Pose:
    """The pose of the highest score; the first of equals."""
    return max(candidates, key=lambda scored: scored[0])[1]
