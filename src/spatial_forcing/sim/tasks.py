"""Meta-World tasks: their instructions, and the split into tasks for policies and for training teachers."""

from dataclasses import dataclass

from spatial_forcing.errors import UnknownNameError


@dataclass(frozen=True)
class Task:
    """One Meta-World task.

    Attributes:
        instruction: the sentence a policy is given.
        goal_shown: draw the goal as an enlarged ball: it is a place and not a part of an object.
        max_steps: episode length in evaluation, control steps.
    """

    instruction: str
    goal_shown: bool = False
    max_steps: int = 150


TASKS: dict[str, Task] = {
    "assembly-v3": Task("put the ring over the peg"),
    "basketball-v3": Task("drop the ball through the hoop"),
    "bin-picking-v3": Task("move the cube into the other bin"),
    "box-close-v3": Task("put the lid on the box"),
    "button-press-topdown-v3": Task("press the button from above"),
    "button-press-topdown-wall-v3": Task("press the button behind the wall from above"),
    "button-press-v3": Task("press the button"),
    "button-press-wall-v3": Task("press the button behind the wall"),
    "coffee-button-v3": Task("press the button of the coffee machine"),
    "coffee-pull-v3": Task("pull the mug away from the coffee machine"),
    "coffee-push-v3": Task("push the mug under the coffee machine"),
    "dial-turn-v3": Task("turn the dial"),
    "disassemble-v3": Task("lift the ring off the peg"),
    "door-close-v3": Task("close the door"),
    "door-lock-v3": Task("lock the door"),
    "door-open-v3": Task("open the door"),
    "door-unlock-v3": Task("unlock the door"),
    "drawer-close-v3": Task("close the drawer"),
    "drawer-open-v3": Task("open the drawer"),
    "faucet-close-v3": Task("turn the faucet off"),
    "faucet-open-v3": Task("turn the faucet on"),
    "hammer-v3": Task("hammer the nail into the wall"),
    "hand-insert-v3": Task("put the hand into the hole"),
    "handle-press-side-v3": Task("press the handle down from the side"),
    "handle-press-v3": Task("press the handle down"),
    "handle-pull-side-v3": Task("pull the handle up from the side"),
    "handle-pull-v3": Task("pull the handle up"),
    "lever-pull-v3": Task("pull the lever up"),
    "peg-insert-side-v3": Task("put the peg into the hole in the side of the box"),
    "peg-unplug-side-v3": Task("pull the peg out of the box"),
    "pick-out-of-hole-v3": Task("take the puck out of the hole"),
    "pick-place-v3": Task("carry the puck to the ball", goal_shown=True),
    "pick-place-wall-v3": Task("carry the puck over the wall to the ball", goal_shown=True),
    "plate-slide-back-side-v3": Task("slide the plate sideways out of the cabinet"),
    "plate-slide-back-v3": Task("slide the plate back out of the cabinet"),
    "plate-slide-side-v3": Task("slide the plate sideways into the cabinet"),
    "plate-slide-v3": Task("slide the plate into the cabinet"),
    "push-back-v3": Task("pull the block back to the ball", goal_shown=True),
    "push-v3": Task("push the puck to the ball", goal_shown=True),
    "push-wall-v3": Task("push the puck around the wall to the ball", goal_shown=True),
    "reach-v3": Task("move the hand to the ball", goal_shown=True, max_steps=70),
    "reach-wall-v3": Task("move the hand over the wall to the ball", goal_shown=True),
    "shelf-place-v3": Task("put the block on the shelf"),
    "soccer-v3": Task("push the ball into the net"),
    "stick-pull-v3": Task("pull the box with the stick"),
    "stick-push-v3": Task("push the box with the stick"),
    "sweep-into-v3": Task("sweep the block into the hole"),
    "sweep-v3": Task("sweep the block off the table"),
    "window-close-v3": Task("close the window"),
    "window-open-v3": Task("open the window"),
}

POLICY_TASKS = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "button-press-v3",
    "button-press-topdown-v3",
    "drawer-open-v3",
    "door-open-v3",
)
"""Tasks for policies. No teacher is trained on images of them."""

TEACHER_TASKS = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "coffee-pull-v3",
    "dial-turn-v3",
    "faucet-open-v3",
    "hammer-v3",
    "handle-press-v3",
    "lever-pull-v3",
    "peg-insert-side-v3",
    "plate-slide-v3",
    "push-wall-v3",
    "soccer-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "window-open-v3",
)
"""Tasks whose scenes a small 3D teacher is trained on; disjoint from `POLICY_TASKS`."""


def task_record(name: str) -> Task:
    """The record of a task.

    Raises:
        UnknownNameError: no Meta-World task has this name.
    """
    if name not in TASKS:
        raise UnknownNameError("Meta-World task", name, TASKS)
    return TASKS[name]
