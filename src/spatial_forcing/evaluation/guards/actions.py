"""Guards of actions: number, range, control mode, gripper, frequency, and what recorded actions do.

Shapes: T frames, D numbers of a state, A of an action, M steps of all replays.
"""

import numpy as np

from spatial_forcing.evaluation.guards.compare import Case
from spatial_forcing.evaluation.guards.states import cosines, replayed
from spatial_forcing.evaluation.guards.trained import ACTION

BEYOND = 0.05  # of the range of actions that data may go beyond it
SAME, GAIN = 0.5, 2.0  # correlation and ratio of displacements under the same actions
FOLLOWS = 0.9
LATER = 8  # steps after which a gripper has answered
SEEN = 5  # frames of each kind, at least
ANSWER = 0.25  # of a number's deviation


def width(case: Case) -> None:
    """Actions have as many numbers as the environment takes."""
    feature = (case.policy.config.output_features or {}).get(ACTION)
    if feature is None:
        return
    wanted, got = int(np.prod(feature.shape)), len(case.shown.low_A)
    if wanted != got:
        named = f": {', '.join(case.known.action)}" if case.known and len(case.known.action) == got else ""
        case.say(
            "wrong",
            "actions",
            expected=f"{wanted} numbers, which the policy gives",
            found=f"{got}{named}",
            advice="Train on data with the environment's actions, or choose the robot with its flags.",
        )
    case.fits("actions")


def ranges(case: Case) -> None:
    """Recorded actions lie in the environment's range."""
    bounds = case.trained.bounds(ACTION)
    if bounds is None or len(bounds[0]) != len(case.shown.low_A):
        return
    low_A, high_A = case.shown.low_A, case.shown.high_A
    span_A = high_A - low_A
    bounded_A = np.isfinite(span_A)
    past_A = np.maximum(low_A - bounds[0], bounds[1] - high_A)
    wrong = np.flatnonzero(bounded_A & (past_A > BEYOND * np.where(bounded_A, span_A, 1)))
    if len(wrong):
        worst = wrong[np.argmax(past_A[wrong] / span_A[wrong])]
        often = _beyond(case, worst)
        rare = often is not None and often < 0.01
        case.say(
            "odd" if rare else "wrong",
            "actions' range",
            expected=f"actions between {low_A[worst]:.3g} and {high_A[worst]:.3g}, the environment's limits",
            found=f"{bounds[0][worst]:.3g} to {bounds[1][worst]:.3g} of number {worst} in "
            + case.trained.source
            + ("" if often is None else f", {100 * often:.0f} % of frames beyond"),
            advice="What is beyond is clipped. Are the data of another control mode, or in other units?",
        )
    case.fits("actions' range")


def _beyond(case: Case, a: int) -> float | None:
    """Share of recorded actions beyond the environment's range; None without recorded ones."""
    if not case.trained.episodes:
        return None
    values = np.concatenate([actions[:, a] for _, actions in case.trained.episodes])
    slack = BEYOND * (case.shown.high_A[a] - case.shown.low_A[a])
    return float(((values < case.shown.low_A[a] - slack) | (values > case.shown.high_A[a] + slack)).mean())


def mode(case: Case) -> None:
    """Displacements in the data are displacements in the environment, and poses are poses."""
    known, data = case.known, data_mode(case)
    if known is None or data is None:
        return
    takes = getattr(case.config, "control_mode", None) or ("relative" if known.relative else None)
    if takes not in ("relative", "absolute"):
        return
    if data != takes:
        flag = hasattr(case.config, "control_mode")
        case.say(
            "wrong",
            "control mode",
            expected=f"{data} actions, as in {case.trained.source}",
            found=f"an environment that takes {takes} ones",
            advice=f"Give --env.control_mode={data} after --." if flag else "Convert the data's actions.",
        )
    case.fits("control mode")


def data_mode(case: Case) -> str | None:
    """Whether recorded actions are positions that the state goes to, or displacements; None if unclear."""
    known = case.known
    if known is None or known.state[:3] != ("x", "y", "z") or not case.trained.episodes:
        return None
    pairs = [(s[1:, :3], a[:-1, :3], s[:-1, :3]) for s, a in case.trained.episodes if len(s) > 1]
    if not pairs or any(of.shape[1] < 3 for of in pairs[0]):
        return None
    after, action, before = (np.concatenate(of) for of in zip(*pairs, strict=True))
    level = _correlation(after, action)
    # A pose that is gone to is near: displacements in units of an action are not.
    near = np.abs(after - action).mean(0) < 0.5 * np.maximum(np.abs(after).mean(0), after.std(0))
    if np.median(level) > FOLLOWS and near.sum() >= 2:
        return "absolute"
    return "relative" if np.median(_correlation(after - before, action)) > ANSWER else None


def _correlation(a_TN: np.ndarray, b_TN: np.ndarray) -> np.ndarray:
    """Correlation of columns, 0 for constant ones."""
    a, b = a_TN - a_TN.mean(0), b_TN - b_TN.mean(0)
    return (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)


def frequency(case: Case) -> None:
    """The data's frames are as far apart as the environment's steps."""
    labelled, here = case.trained.fps, int(case.config.fps)
    if labelled is None:
        return
    accepted = case.known.labels.get(here, (here,)) if case.known else (here,)
    if labelled not in accepted:
        case.say(
            "wrong" if case.known else "odd",
            "control frequency",
            expected=f"{labelled} steps per second, as in {case.trained.source}",
            found=f"{here} in the environment",
            advice=f"Give --env.fps={labelled} after -- if it then controls at that rate; otherwise the data "
            "are of another rate, or labelled with one.",
        )
    case.fits("control frequency")


def replay(case: Case) -> None:
    """The first actions of demonstrations move the environment's state as they did in the data.

    That holds control mode, units, signs, order and frequency at once, whatever they are called.
    """
    moved = replayed(case)
    if moved is None:
        return
    here_MD, there_MD, moves_D = moved
    if not moves_D.any() or any(one.about in ("state's order", "control mode") for one in case.findings):
        return
    cosine_D = np.diagonal(cosines(here_MD, there_MD))[moves_D]
    here, there = (np.linalg.norm(of[:, moves_D], axis=0) for of in (here_MD, there_MD))
    same, gain = float(np.median(cosine_D)), float(np.median(here / np.maximum(there, 1e-12)))
    reversed_ = [str(d) for d, c in zip(np.flatnonzero(moves_D), cosine_D, strict=True) if c < -SAME]
    tried = f"the first steps of {len(case.shown.replays)} demonstrations, played in the environment,"
    if reversed_ or same < SAME:
        which = f", numbers {', '.join(reversed_)} the other way" if reversed_ else ""
        case.say(
            "wrong",
            "replay",
            expected=f"{tried} to move the state as in the data",
            found=f"a correlation of {same:.2f}{which}",
            advice="Actions or states have other signs, another order, frame or control mode than in "
            "training.",
        )
    elif not 1 / GAIN < gain < GAIN:
        case.say(
            "wrong",
            "replay",
            expected=f"{tried} to move the state as far as in the data",
            found=f"{gain:.2g} times as far",
            advice="Actions are in other units than in training, or the control frequency is another.",
        )
    case.fits("replay")
