"""The control law of the scripted expert: actions of LIBERO that move the gripper to a pose.

LIBERO's action is a change of the gripper's pose per step, world axes, each number within [-1, 1]:

    action[0:3] = metres / 0.05     action[3:6] = rotation vector / 0.5 rad     action[6] = -1 open, +1 close

    a_position = (2 e + i) / 0.05,  i += 0.2 e  while |e| < 3 cm, within 3 cm
    a_rotation = 1.5 r / 0.5,       r the rotation vector of R_goal R^T

e in metres, r in radians. The integral takes away what the arm's own weight leaves.
"""

import numpy as np

from spatial_forcing.libero.grasp import Pose

METRES, RADIANS = 0.05, 0.5  # that an action of 1 is
OPEN, CLOSE = -1.0, 1.0
GAIN, TURN_GAIN, INTEGRAL_GAIN = 2.0, 1.5, 0.2
NEAR = 0.03  # metres within which the error is summed up, and the most that it sums up to


def rotation_vector(rotation_33: np.ndarray) -> np.ndarray:
    """The rotation vector (axis times angle, radians) of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation_33).as_rotvec()


class Servo:
    """Moves towards a pose, step by step.

    Args:
        goal: the pose.
        grip: ``OPEN`` or ``CLOSE``.
        integral: whether the error is summed up.
        turn_gain: of the rotation.
    """

    def __init__(self, goal: Pose, grip: float, *, integral: bool = True, turn_gain: float = TURN_GAIN):
        self.goal, self.grip, self.integral, self.turn_gain = goal, grip, integral, turn_gain
        self._sum_3 = np.zeros(3)

    def error(self, hand: Pose) -> tuple[np.ndarray, np.ndarray]:
        """What is missing: metres, and a rotation vector."""
        turn_33 = self.goal.rotation_33 @ hand.rotation_33.T
        return self.goal.position_3 - hand.position_3, rotation_vector(turn_33)

    def reached(self, hand: Pose, metres: float, radians: float) -> bool:
        """Whether less than this is missing."""
        shift_3, turn_3 = self.error(hand)
        return bool(np.linalg.norm(shift_3) < metres and np.linalg.norm(turn_3) < radians)

    def action(self, hand: Pose) -> np.ndarray:
        """The next action, (7,) float32."""
        shift_3, turn_3 = self.error(hand)
        if self.integral and np.linalg.norm(shift_3) < NEAR:
            self._sum_3 = np.clip(self._sum_3 + INTEGRAL_GAIN * shift_3, -NEAR, NEAR)
        moved_3 = np.clip((GAIN * shift_3 + self._sum_3) / METRES, -1, 1)
        turned_3 = np.clip(self.turn_gain * turn_3 / RADIANS, -1, 1)
        return np.array([*moved_3, *turned_3, self.grip], dtype=np.float32)
