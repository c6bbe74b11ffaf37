"""Guard of the gripper: which sign closes it, and which values it is given.

Shapes: T frames, D numbers of a state.
"""

import numpy as np

from spatial_forcing.evaluation.guards.actions import ANSWER, LATER, SEEN
from spatial_forcing.evaluation.guards.compare import Case, numbers

MOST = 0.8  # of demonstrations that begin alike
NEAR = 0.05


def gripper(case: Case) -> None:
    """Gripper actions have the environment's sign and values."""
    known = case.known
    if known is None or not case.trained.episodes:
        return
    grips = [
        actions[:, known.gripper] for _, actions in case.trained.episodes if actions.shape[1] > known.gripper
    ]
    if not grips:
        return
    values = np.concatenate(grips)
    if known.two_valued and _is_zero_one(values):
        case.say(
            "wrong",
            "gripper",
            expected="gripper actions of -1 (open) and 1 (close), which the environment takes",
            found=f"values between 0 and 1 in {case.trained.source}",
            advice="Convert the data's gripper: 2 g - 1 where 1 closes it, 1 - 2 g where 1 opens it.",
        )
        return
    if _answers_otherwise(case) or (known.two_valued and _begins_otherwise(values, grips, known.opens)):
        firsts = numbers([grip[0] for grip in grips[:3]], 1)
        case.say(
            "wrong",
            "gripper",
            expected=f"gripper actions of {known.opens:+d} to open it, as the environment takes them",
            found=f"the other sign in {case.trained.source} (first actions: {firsts})",
            advice="Turn the sign of the gripper in the data, or of the policy's output.",
        )
    case.fits("gripper")


def _is_zero_one(values_T: np.ndarray) -> bool:
    """Whether a gripper is given zeros and ones."""
    ends = [(np.abs(values_T - end) < NEAR).mean() for end in (0.0, 1.0)]
    return min(ends) > NEAR and sum(ends) > MOST


def _begins_otherwise(values_T: np.ndarray, grips: list[np.ndarray], opens: int) -> bool:
    """Whether demonstrations begin with the gripper closing, and open it later: the other sign."""
    signs = np.sign([grip[0] for grip in grips])
    both = min((values_T > 0).mean(), (values_T < 0).mean()) > NEAR
    return bool((signs == -opens).mean() >= MOST and both)


def _answers_otherwise(case: Case) -> bool:
    """Whether the state answers to gripper actions with another sign in the data than in the environment."""
    known, here_D = case.known, case.shown.gripper_D
    if known is None or here_D is None:
        return False
    there_D = _answer(case)
    if there_D is None or len(there_D) != len(here_D):
        return False
    spread_D = np.concatenate([states for states, _ in case.trained.episodes]).std(0)
    clear_D = (np.abs(there_D) > ANSWER * spread_D) & (np.abs(here_D) > ANSWER * spread_D) & (spread_D > 1e-4)
    named_D = np.array([name in ("gripper", "finger") for name in known.state])
    clear_D &= named_D if len(named_D) == len(clear_D) else False
    return bool(clear_D.any() and (np.sign(here_D) != np.sign(there_D))[clear_D].all())


def _answer(case: Case) -> np.ndarray | None:
    """Change_D of the state over some steps of high gripper actions, less that of low ones; None if there are
    too few."""
    assert case.known is not None
    high, low = [], []
    values = np.concatenate([actions[:, case.known.gripper] for _, actions in case.trained.episodes])
    middle = (values.min() + values.max()) / 2
    for states_TD, actions_TA in case.trained.episodes:
        for t in range(len(actions_TA) - LATER):
            held = actions_TA[t : t + LATER, case.known.gripper] > middle
            if held.all():
                high.append(states_TD[t + LATER] - states_TD[t])
            elif not held.any():
                low.append(states_TD[t + LATER] - states_TD[t])
    return np.mean(high, axis=0) - np.mean(low, axis=0) if min(len(high), len(low)) >= SEEN else None
