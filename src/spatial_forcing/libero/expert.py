"""Scripted expert for LIBERO's tasks that pick an object and place it: libero_spatial and libero_object.

    above the object, down, close, lift, over the target, down, open

It sees poses and collision boxes (privileged; ``scene.py``), picks a grasp (``grasp.py``) and moves there
(``servo.py``). After a failed attempt it tries again from where it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spatial_forcing.libero.boxes import clearance, extent
from spatial_forcing.libero.grasp import RIM_DEPTH, Pose, rim_grasp, top_grasp, top_height
from spatial_forcing.libero.scene import Scene
from spatial_forcing.libero.servo import CLOSE, OPEN, Servo

ATTEMPTS = 3
ENOUGH_STEPS = 220  # after which no new attempt begins
CLOSING = (8, 22)  # steps, at least and at most
STANDS_STILL = 4e-4  # metres that fingers move in a step at most, once they hold something
LIFTED = 0.03  # metres by which a grasped object has risen
HUGGED = 0.03  # metres of room over a bowl's middle below which it stands in something, such as a drawer


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    Attributes:
        success: whether LIBERO says so.
        steps: how many it took.
        said: what went wrong last, "" after a success.
    """

    success: bool
    steps: int
    said: str = ""


class _Solved(Exception):
    """The task is solved: stop at once, wherever the expert is."""


def is_bowl(name: str) -> bool:
    """Whether an object is taken by its rim."""
    return "bowl" in name


class Expert:
    """Expert for one episode.

    Args:
        scene: after the reset.
        step: does an action, and says whether the task is solved.
    """

    def __init__(self, scene: Scene, step: Callable[[np.ndarray], bool]):
        self.scene, self._step, self.steps = scene, step, 0

    def run(self) -> Outcome:
        """Acts until the task is solved, or the attempts are used up."""
        name, target = self.scene.goal
        said = ""
        try:
            for _ in range(ATTEMPTS):
                said = self._attempt(name, target)
                if self.steps > ENOUGH_STEPS:
                    break
                hand = self.scene.hand
                away = Pose(hand.position_3 + np.array([0, 0, 0.08]), hand.rotation_33)
                self._move(away, OPEN, metres=0.02, radians=0.3, most=20)
        except _Solved:
            return Outcome(True, self.steps)
        return Outcome(False, self.steps, said)

    def _attempt(self, name: str, target: str) -> str:
        """One attempt; says what went wrong."""
        self._hold(OPEN, 1)
        grasp = self._rim_grasp(name) if is_bowl(name) else self._top_grasp(name)
        start_3 = self.scene.position_3(name)
        self._reach(grasp)
        self._close()
        return self._carry(name, target, grasp, start_3)

    # ---- grasp ---------------------------------------------------------------------------------------------

    def _rim_grasp(self, name: str) -> Pose:
        centre_2, top = self.scene.position_3(name)[:2], self.scene.corners_N3(name)[:, 2].max()
        z = top - RIM_DEPTH
        around = self.scene.around(name, z - 0.02)
        # The hand is wide: beside a bowl it needs room at every height. In a drawer no height has it.
        pillars = [box.pillar for box in around]
        free = clearance(pillars, np.array([*centre_2, z])) >= HUGGED
        return rim_grasp(centre_2, top, pillars if free else around, self.scene.hand)

    def _top_grasp(self, name: str) -> Pose:
        corners_N3 = self.scene.corners_N3(name)
        around = self.scene.around(name, top_height(corners_N3) - 0.01)
        return top_grasp(corners_N3, around, self.scene.hand)

    def _reach(self, grasp: Pose) -> None:
        """Above the grasp, and down to it."""
        z = grasp.position_3[2]
        above = max(z + 0.08, min(self.scene.hand.position_3[2], z + 0.12))
        self._move(
            Pose(np.array([*grasp.position_3[:2], above]), grasp.rotation_33), OPEN, metres=0.012, radians=0.1
        )
        self._move(grasp, OPEN, metres=0.004, most=35)

    def _close(self) -> None:
        """Closes the gripper until the fingers stand still."""
        least, most = CLOSING
        before_2 = self.scene.fingers_2
        for count in range(most):
            self._hold(CLOSE, 1)
            now_2 = self.scene.fingers_2
            if count >= least and np.abs(now_2 - before_2).max() < STANDS_STILL:
                return
            before_2 = now_2

    # ---- place ---------------------------------------------------------------------------------------------

    def _carry(self, name: str, target: str, grasp: Pose, start_3: np.ndarray) -> str:
        """Lifts the object, brings it over the target, lets go; says what went wrong."""
        bowl, z, top = is_bowl(name), grasp.position_3[2], self.scene.corners_N3(target)[:, 2].max()
        reaches = z - self.scene.corners_N3(name)[:, 2].min()  # the object below the gripper
        if bowl:
            carry = max(z + 0.06, top + 0.06 + z - start_3[2])
            lift = max(z + 0.06, carry - 0.03)
        else:
            carry = top + reaches + 0.03
            lift = max(z + 0.06, carry)
        self._to(grasp.position_3[:2], lift, grasp, most=35)
        if self.scene.position_3(name)[2] - start_3[2] < LIFTED:
            return "nothing was grasped"
        goal_3 = self.scene.position_3(target) if bowl else self._middle_3(target)
        self._to(goal_3[:2] - self._hangs_3(name)[:2], carry, grasp, most=70)
        hangs_3 = self._hangs_3(name)
        if bowl:  # its middle a little above the target's
            lower, metres = goal_3[2] + 0.012 - hangs_3[2], 0.008
        else:  # into the target, which has a rim
            lower, metres = max(top + 0.03, top + reaches - 0.07), 0.015
        self._to(goal_3[:2] - hangs_3[:2], lower, grasp, metres=metres, most=30)
        self._let_go()
        return "it was placed, and the task is not solved"

    def _middle_3(self, name: str) -> np.ndarray:
        """The middle of an object's boxes."""
        low_3, high_3 = extent(self.scene.corners_N3(name))
        return (low_3 + high_3) / 2

    def _hangs_3(self, name: str) -> np.ndarray:
        """From the gripper to the object in it."""
        return self.scene.position_3(name) - self.scene.hand.position_3

    def _let_go(self) -> None:
        self._hold(OPEN, 6)
        for _ in range(12):
            self._act(np.array([0, 0, 0.6, 0, 0, 0, OPEN], dtype=np.float32))

    # ---- motion --------------------------------------------------------------------------------------------

    def _to(
        self, place_2: np.ndarray, height: float, grasp: Pose, *, most: int, metres: float = 0.02
    ) -> None:
        """Moves with a closed gripper, roughly turned as for the grasp."""
        goal = Pose(np.array([*place_2, height]), grasp.rotation_33)
        self._move(goal, CLOSE, metres=metres, radians=0.3, most=most)

    def _move(
        self, goal: Pose, grip: float, *, metres: float = 0.006, radians: float = 0.06, most: int = 60
    ) -> None:
        servo = Servo(goal, grip)
        for _ in range(most):
            if servo.reached(self.scene.hand, metres, radians):
                return
            self._act(servo.action(self.scene.hand))

    def _hold(self, grip: float, steps: int) -> None:
        """Stays where it is."""
        servo = Servo(self.scene.hand, grip, integral=False, turn_gain=1.0)
        for _ in range(steps):
            self._act(servo.action(self.scene.hand))

    def _act(self, action_7: np.ndarray) -> None:
        self.steps += 1
        if self._step(action_7):
            raise _Solved
