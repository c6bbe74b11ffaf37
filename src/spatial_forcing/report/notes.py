"""Notes below the verdict: warnings, unfinished runs, steps to an error, references, the probe."""

from collections.abc import Mapping, Sequence

from spatial_forcing.report.records import ArmSummary, Comparison, Summary, ToTarget
from spatial_forcing.report.wording import difference_text, listed, number, upper
from spatial_forcing.results import ProbeRow

# A policy whose held-out error is within this factor of the blind policy's has not learned to look.
BLIND_FACTOR = 0.95
# Where knowing the state leaves more than this share of the blind policy's error, eyes cannot save much
# either.
STATE_FACTOR = 0.7


def notes(summary: Summary) -> list[str]:
    """All notes below the verdict."""
    return [
        *(f"Warned of before it began: {warning}" for warning in summary.warnings),
        *unfinished(summary),
        *earlier_steps(summary),
        *left_out(summary.comparisons),
        *no_rollouts(summary),
        *unsolved(summary.comparisons),
        *error_notes(summary.comparisons),
        *constant_notes(summary.arms),
        *reference_notes(summary.arms),
        *probe_gains(summary, shared=True),
        *_probe_without_depth(summary.probe.rows if summary.probe else [], summary),
    ]


def unfinished(summary: Summary) -> list[str]:
    """Notes on unfinished arms: a run has not reached its last step, or was not evaluated there."""
    found = []
    for name in summary.arms:
        runs = [run for run in summary.runs if run.arm == name]
        late = [run for run in runs if not run.finished]
        if not runs:
            found.append(f"{upper(name)} has no run yet.")
        elif late and len(runs) == 1:
            at = late[0].evaluated_step
            evaluated = "has not been evaluated" if at is None else f"was last evaluated at step {at}"
            trained = f"was trained for {late[0].trained_steps} of {late[0].steps} steps"
            found.append(f"{upper(name)} is unfinished: it {trained} and {evaluated}.")
        elif late:
            found.append(f"{upper(name)} is unfinished: {len(late)} of its {len(runs)} runs are.")
    return found


def earlier_steps(summary: Summary) -> list[str]:
    """Note on the arms compared before their last step, or in some of their seeds only."""
    found = []
    for c in (one for one in summary.comparisons if one.step is not None):
        planned = set(summary.arms[c.a].seeds_planned) & set(summary.arms[c.b].seeds_planned)
        parts = []
        if (c.step or 0) < min(summary.arms[name].steps for name in (c.a, c.b)):
            parts.append(f"at step {c.step}")
        if len(c.seeds) + len(c.left_out) < len(planned):
            parts.append(f"in {len(c.seeds) + len(c.left_out)} of {len(planned)} seeds")
        if parts:
            found.append(f"{c.b} and {c.a} {' '.join(parts)}")
    if not found:
        return []
    return [f"Compared where both were evaluated so far, not at the end: {'; '.join(found)}."]


def left_out(comparisons: Sequence[Comparison]) -> list[str]:
    """Notes on the runs that the numbers leave out: diverged, or rolled out on other episodes."""
    diverged = dict.fromkeys(name for c in comparisons if c.errors for name in c.errors.diverged)
    found = []
    if diverged:
        found.append(
            f"Diverged, with an error that is not finite: {listed(diverged)}. Their errors are left out, and "
            "the arms are not tested by errors."
        )
    others = [f"{c.b} and {c.a} of seed {s}, {why}" for c in comparisons for s, why in c.left_out.items()]
    if others:
        found.append(f"Left out, since they ran other episodes: {'; '.join(others)}.")
    return found


def no_rollouts(summary: Summary) -> list[str]:
    """Note on what counts as better without rollouts."""
    evaluated = [arm for arm in summary.arms.values() if arm.evaluated_step is not None]
    if not evaluated or any(arm.success for arm in evaluated):
        return []
    return [
        "There were no rollouts: the arms are judged by their action error on held-out demonstrations, and a "
        "lower one need not mean more success."
    ]


def unsolved(comparisons: Sequence[Comparison]) -> list[str]:
    """Note on the arms without any success."""
    none = [c for c in comparisons if not c.problem and not (c.both or c.only_a or c.only_b)]
    names = list(dict.fromkeys([*(c.b for c in none), *(c.a for c in none)]))
    if not names:
        return []
    who = f"Neither {names[0]} nor {names[1]}" if len(names) == 2 else f"None of {listed(names)}"
    return [f"{who} solved an episode."]


def error_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Notes on each arm under test: steps and data to reach the last errors of the others."""
    found = []
    for b in dict.fromkeys(c.b for c in comparisons):
        of = [c for c in comparisons if c.b == b]
        steps = [(c.a, c.steps_to_target) for c in of if c.steps_to_target]
        data = [(c.a, c.data_to_target) for c in of if c.data_to_target]
        found += [f"Steps{_soon(b, steps)}."] if steps else []
        found += [f"Data{_soon(b, data)}."] if data else []
    return found


def _soon(b: str, reached: Sequence[tuple[str, ToTarget]]) -> str:
    """Formats the ratios to several targets; bounds where a seed is censored."""
    ratios = "; ".join(f"{a} ({number(to.target)}) {to.ratio}" for a, to in reached)
    text = (
        f" to the final held-out error of another arm, its own over those of {b}, above 1 where {b} is there "
    )
    text += f"sooner: {ratios}"
    if any(to.bounds for _, to in reached):
        text += " (a bound where a seed was never there, or at its first measurement already)"
    return text


def constant_notes(arms: Mapping[str, ArmSummary]) -> list[str]:
    """Note on what predicting the mean action comes to, and on the arms that are no better."""
    known = {name: arm for name, arm in arms.items() if arm.constant_error is not None}
    if not known:
        return []
    constant = next(iter(known.values())).constant_error
    text = f"Predicting the mean action, whatever is seen, has a held-out error of {number(constant)}"
    worse = [
        name
        for name, arm in known.items()
        if arm.heldout_error is not None and arm.heldout_error >= (arm.constant_error or 0)
    ]
    if not worse:
        return [f"{text}."]
    errors = ", ".join(number(arms[name].heldout_error) for name in worse)
    be = "is" if len(worse) == 1 else "are"
    return [f"{text}: {listed(worse)} {be} no better ({errors}), so more steps come before any comparison."]


def reference_notes(arms: Mapping[str, ArmSummary]) -> list[str]:
    """Notes on what the blind and the state references imply for the others."""
    blind, state = (arms[name].heldout_error if name in arms else None for name in ("blind", "state"))
    if blind is None:
        return []
    found = []
    level = {
        name: arm
        for name, arm in arms.items()
        if arm.role != "reference" and (arm.heldout_error or 0) >= BLIND_FACTOR * blind
    }
    if level:
        found.append(_blind_note(level, blind))
    if state is not None and state > STATE_FACTOR * blind:
        helps = "helps little" if state < blind else "does not help"
        found.append(
            f"Knowing the true state {helps} ({number(state)} against {number(blind)} blind): the action "
            "error of this task, after so many steps, says little about seeing."
        )
    return found


def _blind_note(level: Mapping[str, ArmSummary], blind: float) -> str:
    """Note on arms that are no better than the blind policy, and what that means."""
    steps = sorted(arm.evaluated_step or 0 for arm in level.values())
    span = " to ".join(map(str, dict.fromkeys([steps[0], steps[-1]])))
    errors = f"{', '.join(number(arm.heldout_error) for arm in level.values())} against {number(blind)}"
    be, its, it, has = ("is", "its", "it", "has") if len(level) == 1 else ("are", "their", "they", "have")
    better = (
        "hardly better" if any((arm.heldout_error or 0) < blind for arm in level.values()) else "no better"
    )
    return (
        f"{upper(listed(level))} {be} {better} than the blind policy by {its} action error ({errors}): "
        f"in {span} steps {it} {has} not learned to use {its} images. How {it} would do with more steps, "
        "this run cannot say."
    )


def probe_gains(summary: Summary, *, shared: bool) -> list[str]:
    """Notes on arms whose tokens give better depth than the plain arm's: those whose gain a control shares,
    or those whose gain none does."""
    arms, plain = summary.arms, summary.plain_arm or ""
    rows = summary.probe.rows if summary.probe else []
    differ = {row.name: to[plain] for row in rows if plain in (to := row.differences or {})}
    gained = [name for name, one in differ.items() if one.high is not None and one.high < 0]
    controls = [name for name in differ if name in arms and arms[name].role == "control"]
    also, found = [one for one in controls if one in gained], []
    rmse = {row.name: row.rmse_m for row in rows}
    for name in (one for one in gained if one in arms and arms[one].role == "arm"):
        agrees = rmse[name] < rmse[plain]
        if shared != (bool(also) or not agrees):
            continue
        text = (
            f"Depth probe: depth is read better from the tokens of {name} than from those of {plain} "
            f"(AbsRel {difference_text(differ[name])})"
        )
        if controls:
            theirs = ", ".join(f"{one} {difference_text(differ[one])}" for one in controls)
            content = "so do those of a control" if also else "not so from those of the controls"
            text += f"; {content} ({theirs})"
        if not agrees:
            text += f"; by RMSE it is not ({number(rmse[name])} against {number(rmse[plain])})"
        found.append(f"{text}. The intervals are over held-out episodes of one training.")
    return found


def _probe_without_depth(rows: Sequence[ProbeRow], summary: Summary) -> list[str]:
    """Notes on policies whose tokens give no better depth than the mean depth, which uses no tokens."""
    mean = next((row.absrel for row in rows if row.name == "mean depth"), None)
    if mean is None:
        return []
    below = [row for row in rows if row.name in summary.arms and not _beats_mean(row, mean)]
    if not below:
        return []
    names = ", ".join(f"{row.name} {number(row.absrel)}" for row in below)
    return [
        f"Depth probe: no better than the mean depth of each place (AbsRel {number(mean)}), which is the "
        f"same probe without tokens, or not by more than other held-out episodes could change: {names}. A "
        "linear map finds no depth in these tokens, or too little to tell."
    ]


def _beats_mean(row: ProbeRow, mean: float) -> bool:
    """Whether AbsRel is below that of the mean depth, and so is its interval if there is one."""
    difference = (row.differences or {}).get("mean depth")
    high = None if difference is None else difference.high
    return row.absrel < mean and (high is None or high < 0)
