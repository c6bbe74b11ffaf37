"""Guards of states: number, range at the start of episodes, quaternions, order.

Shapes: N looks, T frames, D numbers of a state.
"""

import numpy as np

from spatial_forcing.evaluation.guards.compare import Case, numbers
from spatial_forcing.evaluation.guards.trained import STATE, saved_statistics

# So many ranges of the training data a first state may be outside of it, and at least so much; and so many
# of the first states must be.
MARGIN, LEAST, MOST = 1.0, 1e-2, 0.5
UNIT = 0.02  # from one that the length of a quaternion may be
QUATERNION = 4
SPREAD = 0.05
# LeRobot adds this to a deviation; and so many deviations are no state that a policy could know.
LEROBOTS, FAR = 1e-8, 1e3


def width(case: Case) -> None:
    """The state has as many numbers as the policy was trained with."""
    feature = (case.policy.config.input_features or {}).get(STATE)
    if feature is None:
        return
    wanted = int(np.prod(feature.shape))
    got = None if case.shown.states_ND is None else case.shown.states_ND.shape[1]
    if got != wanted:
        layout = f": {', '.join(case.known.state)}" if case.known and got == len(case.known.state) else ""
        case.say(
            "wrong",
            "state",
            expected=f"{wanted} numbers in {STATE}",
            found="none" if got is None else f"{got}{layout}",
            advice="Train on data with the environment's state, or evaluate where the policy's is given.",
        )
    case.fits("state")


def ranges(case: Case) -> None:
    """First states lie in the range of the training data, or near it."""
    bounds, states_ND = case.trained.bounds(STATE), case.shown.states_ND
    if bounds is None or states_ND is None or len(bounds[0]) != states_ND.shape[1]:
        return
    low_D, high_D = bounds
    margin_D = np.maximum(MARGIN * (high_D - low_D), LEAST * np.maximum(1, np.abs(high_D)))
    outside_D = ((states_ND < low_D - margin_D) | (states_ND > high_D + margin_D)).mean(0) > MOST
    if outside_D.any():
        said = [
            _place(case, d, float(low_D[d]), float(high_D[d])) for d in np.flatnonzero(outside_D).tolist()
        ]
        case.say(
            "wrong",
            "state's range",
            expected=f"first states in the range of {case.trained.source}, or near it",
            found="; ".join(said),
            advice="Compare units, order and frame of the state. A number that never moved in training is "
            "divided by almost nothing.",
        )
    case.fits("state's range")


def _place(case: Case, d: int, low: float, high: float) -> str:
    """Where a number of the state begins, and where it was in training."""
    assert case.shown.states_ND is not None
    of, first = case.trained.stats[STATE], float(np.median(case.shown.states_ND[:, d]))
    name = f" ({case.known.state[d]})" if case.known and len(case.known.state) > d else ""
    z = abs(first - of["mean"][d]) / of["std"][d] if of.keys() >= {"mean", "std"} and of["std"][d] else 0
    far = f", {z:.3g} deviations off" if z > 3 else ""
    return f"number {d}{name} of {STATE} is {first:.3g}, in training {low:.3g} to {high:.3g}{far}"


def constants(case: Case) -> None:
    """No number that stood still in training moves in the environment: it is divided by almost nothing.

    Wrong if it does so under recorded actions; odd if it does so under the gripper's, which a policy may keep
    still, but physics does not.
    """
    of, states_ND = saved_statistics(case.policy).get(STATE, {}), case.shown.states_ND
    if states_ND is None or not {"mean", "std"} <= of.keys() or len(of["mean"]) != states_ND.shape[1]:
        return
    mode = (case.policy.config.normalization_mapping or {}).get("STATE")
    if getattr(mode, "value", mode) != "MEAN_STD":
        return
    seen_MD = np.concatenate([states_ND, *(here_TD for here_TD, _ in case.shown.replays)])
    off_D = np.abs(seen_MD - of["mean"]).max(0)
    moved_D = off_D if case.shown.gripper_D is None else np.maximum(off_D, np.abs(case.shown.gripper_D))
    scale_D = of["std"] + LEROBOTS
    for d in np.flatnonzero(moved_D > FAR * scale_D).tolist():
        case.say(
            "wrong" if off_D[d] > FAR * scale_D[d] else "odd",
            "state's constants",
            expected=f"number {d} of {STATE} to stand still, as in training (deviation {of['std'][d]:.2g})",
            found=f"it moves by {moved_D[d]:.2g}, normalised {moved_D[d] / scale_D[d]:.2g} deviations",
            advice="Train on statistics in which the deviation of that number is 1 (std in meta/stats.json), "
            "or on data without it.",
        )
    case.fits("state's constants")


def quaternion(case: Case) -> None:
    """A quaternion in the data is one in the environment, and an axis-angle none."""
    states_ND = case.shown.states_ND
    if states_ND is None or not case.trained.episodes:
        return
    states_TD = np.concatenate([states for states, _ in case.trained.episodes])
    if states_TD.shape[1] != states_ND.shape[1]:
        return
    for start in range(states_ND.shape[1] - QUATERNION + 1):
        here = slice(start, start + QUATERNION)
        if _is_unit(states_TD[:, here]) and not _is_unit(states_ND[:, here]):
            length = float(np.linalg.norm(states_ND[:, here], axis=1).mean())
            case.say(
                "wrong",
                "rotation",
                expected=f"a quaternion in numbers {start} to {start + 3} of {STATE}, as in training",
                found=f"numbers of length {length:.2f}, {numbers(states_ND[0, here])}",
                advice="LIBERO's state in LeRobot has the axis-angle of the end effector: convert the data, "
                "or the environment's state.",
            )
            return
    case.fits("rotation")


def _is_unit(rows_N4: np.ndarray) -> bool:
    """Whether four numbers have the length of a quaternion in nearly all frames."""
    lengths = np.linalg.norm(rows_N4, axis=1)
    return bool((np.abs(lengths - 1) < UNIT).mean() > 1 - SPREAD)


def layout(case: Case) -> None:
    """The same actions move the same numbers of the state as in the data; see ``actions.replay``."""
    moved = replayed(case)
    # Poses that are taken for displacements move everything otherwise: that is said already.
    if moved is None or any(one.about == "control mode" for one in case.findings):
        return
    here_MD, there_MD, moves_D = moved
    cosine_DD = cosines(here_MD, there_MD)
    for d in np.flatnonzero(moves_D):
        best = int(np.abs(cosine_DD[:, d]).argmax())
        own = cosine_DD[d, d]
        # Two numbers that take each other's place; one that merely moves along with another does not.
        exchanged = abs(cosine_DD[best, d]) > 0.9 and cosine_DD[d, d] < 0.6
        if best != d and exchanged:
            case.say(
                "wrong",
                "state's order",
                expected=f"number {d} of {STATE} to answer to recorded actions as in training (correlation "
                "near 1)",
                found=f"{own:.2f}; number {best} does so by {cosine_DD[best, d]:+.2f}",
                advice="The numbers are in another order than in training, or have another sign: bring them "
                "into the order of the training data.",
            )
            return
    case.fits("state's order")


def replayed(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Displacements since the start under recorded actions, in the environment and in the data, and which
    numbers of the state moved in the data; None without replays.

    A number that jumps (an angle that wraps around) does not count as one that moved.
    """
    if not case.shown.replays:
        return None
    here, there = (np.concatenate([of[i] - of[i][:1] for of in case.shown.replays]) for i in (0, 1))
    steps = np.concatenate([np.abs(np.diff(of[i], axis=0)) for of in case.shown.replays for i in (0, 1)])
    all_TD = np.concatenate([states for states, _ in case.trained.episodes])
    size_D = np.sqrt((there**2).mean(0))
    moves_D = (size_D > SPREAD * all_TD.std(0)) & (size_D > 1e-4) & (steps.max(0) < np.pi / 2)
    return here, there, moves_D


def cosines(here_MD: np.ndarray, there_MD: np.ndarray) -> np.ndarray:
    """Correlation about zero of every number here with every number there, (D, D)."""
    sizes = np.outer(np.linalg.norm(here_MD, axis=0), np.linalg.norm(there_MD, axis=0))
    return here_MD.T @ there_MD / np.maximum(sizes, 1e-12)
