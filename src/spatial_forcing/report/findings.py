"""What the numbers say, in sentences: the same words for better, worse and no difference."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from spatial_forcing.report.records import ArmSummary, Comparison, RatePoint, Summary
from spatial_forcing.results import Difference, ProbeRow
from spatial_forcing.stats import Interval

ALPHA = 0.05
# A policy whose held-out error is within this factor of the blind policy's has not learned to look.
BLIND_FACTOR = 0.95
# Where knowing the state leaves more than this share of the blind policy's error, eyes cannot save much
# either.
STATE_FACTOR = 0.7


def headline(summary: Summary) -> str:
    """What was found, in a few plain sentences with their numbers."""
    if not summary.comparisons:
        return f"There is nothing to compare: the results hold no second arm. {seeds_note(summary)}"
    claims = [verdict(c, summary) for c in summary.comparisons if not against_control(c, summary)]
    return " ".join([*claims, *controls_verdicts(summary), seeds_note(summary)])


def against_control(found: Comparison, summary: Summary) -> bool:
    """Whether a comparison is with a control: an arm whose target knows nothing of the frame."""
    return summary.arms[found.a].role == "control"


def controls_verdicts(summary: Summary) -> list[str]:
    """Whether what each arm gained is more than a target without content gives, in words."""
    tested = [c for c in summary.comparisons if against_control(c, summary) and not c.problem]
    if not tested:
        return [
            "No control was compared: whether a target that knows nothing of the image does as well is "
            "not known."
        ]
    return [
        controls_verdict([c for c in tested if c.b == b], summary) for b in dict.fromkeys(c.b for c in tested)
    ]


def controls_verdict(tested: Sequence[Comparison], summary: Summary) -> str:
    """One arm against the controls."""
    b = tested[0].b
    rates = ", ".join(f"{c.a} {rate_text(c.success_a, level='')}, {p_text(c.p_value)}" for c in tested)
    level = [c.a for c in tested if not better(c)]
    gained = any(
        better(c)
        for c in summary.comparisons
        if c.b == b and not c.problem and not against_control(c, summary)
    )
    controls = f"targets that know nothing of the image ({rates})"
    if not level:
        cause = ", so its gain has to do with the teacher's content" if gained else ""
        return f"{upper(b)} succeeded more often than the controls, {controls}{cause}."
    if gained:
        return (
            f"It did not succeed significantly more often than {listed(level)}, of the controls, "
            f"{controls}: that the teacher's content brought the gain is not shown."
        )
    return f"Nor is it shown to be ahead of the controls, {controls}."


def better(found: Comparison) -> bool:
    """Whether b succeeded significantly more often than a."""
    return different(found) and (found.difference_points or 0) > 0


def different(found: Comparison) -> bool:
    """Whether a and b differ significantly."""
    return found.p_value is not None and found.p_value < ALPHA


def verdict(found: Comparison, summary: Summary) -> str:
    """One comparison of success in words."""
    a, b = found.a, found.b
    if found.problem or found.step is None or found.success_a is None:
        return f"{upper(b)} and {a} cannot be compared: {(found.problem or 'no episodes').rstrip('.')}."
    if not different(found):
        claim = f"No significant difference in success between {b} and {a}"
    else:
        claim = f"{upper(b)} succeeded {'more' if better(found) else 'less'} often than {a}"
    rates = f"{b} {rate_text(found.success_b)} against {a} {rate_text(found.success_a, level='')}"
    test = f"McNemar's exact test on the same {found.success_a.episodes} episodes"
    text = f"{claim}: {rates}, {p_text(found.p_value)} ({test}), teacher {summary.teacher.name}."
    if found.step < min(summary.arms[name].steps for name in (a, b)):
        text += f" This is at step {found.step}, the last at which both were evaluated, not at the end."
    return text


def seeds_note(summary: Summary) -> str:
    """How much the number of seeds allows to say."""
    seeds = sorted({arm.seed for arm in summary.arms.values() if arm.role != "reference"})
    if len(seeds) > 1:
        all_of_them = ", ".join(map(str, seeds))
        return f"The arms have different seeds ({all_of_them}), so they differ in more than the method."
    named = f" ({seeds[0]})" if seeds else ""
    return f"One seed{named}: a demonstration, not evidence."


def notes(summary: Summary) -> list[str]:
    """What a careful reader would add: what is unfinished, the action error, the references."""
    found = [
        *unfinished(summary.arms),
        *error_notes(summary.comparisons),
        *unsolved(summary.comparisons),
        *reference_notes(summary.arms),
        *probe_notes(summary),
    ]
    if len(summary.comparisons) > 1:
        found.append(f"The p-values are not corrected for {len(summary.comparisons)} comparisons.")
    return found


def unfinished(arms: Mapping[str, ArmSummary]) -> list[str]:
    """A sentence for each arm that has not reached its last step or was not evaluated there."""
    found = []
    for name, arm in arms.items():
        if not arm.finished:
            at = arm.evaluated_step
            evaluated = "has not been evaluated" if at is None else f"was last evaluated at step {at}"
            trained = f"was trained for {arm.trained_steps} of {arm.steps} steps"
            found.append(f"{upper(name)} is unfinished: it {trained} and {evaluated}.")
    return found


def unsolved(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence that names the arms without any success."""
    none = [c for c in comparisons if not c.problem and not (c.both or c.only_a or c.only_b)]
    names = list(dict.fromkeys([*(c.b for c in none), *(c.a for c in none)]))
    if not names:
        return []
    who = f"Neither {names[0]} nor {names[1]}" if len(names) == 2 else f"None of {listed(names)}"
    return [f"{who} solved an episode."]


def error_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """For each arm under test: held-out errors, and how soon it reached the last ones of the others."""
    known = [c for c in comparisons if c.reach is not None]
    by_arm = [[c for c in known if c.b == b] for b in dict.fromkeys(c.b for c in known)]
    return [" ".join([*held_out(of), *steps_to_errors(of)]) for of in by_arm]


def held_out(compared: Sequence[Comparison]) -> list[str]:
    """A sentence for each step at which errors of one arm and others can be compared."""
    errors: dict[int, dict[str, float]] = {}
    for c in compared:
        if c.heldout is not None:
            errors.setdefault(c.heldout.step, {c.b: c.heldout.b})[c.a] = c.heldout.a
    return [
        f"Action error on held-out demonstrations at step {step}: "
        f"{', '.join(f'{name} {number(error)}' for name, error in of.items())}."
        for step, of in errors.items()
    ]


def steps_to_errors(compared: Sequence[Comparison]) -> list[str]:
    """Steps of one arm to the last errors of others: at most a sentence for each way it may go."""
    b, never, at_once, reached, timed = compared[0].b, [], [], [], False
    for c in compared:
        assert c.reach is not None
        target = f"{c.a} ({number(c.reach.target)})"
        if c.reach.steps_b is None:
            never.append(target)
        elif c.reach.ratio is not None and c.reach.steps_a == c.first_step:
            at_once.append(target)
        else:
            ratio = "" if c.reach.ratio is None else f": {c.reach.ratio:.1f} times as many steps"
            timed |= bool(ratio)
            reached.append(
                f"{target} at step {c.reach.steps_b}, {c.a} itself at step {c.reach.steps_a}{ratio}"
            )
    found = []
    if reached:
        spacing = ", no finer than the evaluations are spaced" if timed else ""
        found.append(f"{upper(b)} reached the last error of {'; of '.join(reached)}{spacing}.")
    if never:
        names = listed(never, "or")
        found.append(f"{upper(b)} never reached the last error of {names}, so there is no ratio of steps.")
    if at_once:
        was = "was at its last error at its first evaluation"
        if len(at_once) > 1:
            was = "were at their last errors at their first evaluations"
        found.append(f"{upper(listed(at_once))} {was} already: no ratio of steps.")
    return found


def reference_notes(arms: Mapping[str, ArmSummary]) -> list[str]:
    """What the blind and the state references say about the others."""
    blind, state = (arms[name].heldout_error if name in arms else None for name in ("blind", "state"))
    if blind is None:
        return ["No blind reference was evaluated: how much of this task needs no images is not known."]
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
    """Arms that are no better than the blind policy, and what that means."""
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


def probe_notes(summary: Summary) -> list[str]:
    """What the probe says of the policies' tokens: against the baseline's, and against the mean depth."""
    rows = summary.probe.rows if summary.probe else []
    return [*_probe_gains(rows, summary.arms), *_probe_without_depth(rows, summary)]


def _probe_gains(rows: Sequence[ProbeRow], arms: Mapping[str, ArmSummary]) -> list[str]:
    """A sentence for every arm from whose tokens depth is read better than from the baseline's."""
    differ = {row.name: to["baseline"] for row in rows if "baseline" in (to := row.differences or {})}
    gained = [name for name, one in differ.items() if one.high is not None and one.high < 0]
    controls = [name for name in differ if name in arms and arms[name].role == "control"]
    found = []
    for name in (one for one in gained if one in arms and arms[one].role == "arm"):
        text = (
            f"Depth probe: depth is read better from the tokens of {name} than from those of baseline "
            f"(AbsRel {difference_text(differ[name])})"
        )
        if controls:
            theirs = ", ".join(f"{one} {difference_text(differ[one])}" for one in controls)
            also = [one for one in controls if one in gained]
            content = "so do those of a control" if also else "not so from those of the controls"
            text += f"; {content} ({theirs})"
        found.append(f"{text}. The intervals are over held-out episodes of one training.")
    return found


def _probe_without_depth(rows: Sequence[ProbeRow], summary: Summary) -> list[str]:
    """Says when the probe gains nothing from a policy's tokens over the mean depth, which sees nothing."""
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


def rate_text(rate: Interval | RatePoint | None, level: str = "95 % ") -> str:
    """A success rate as everywhere in the report: 14/25 (95 % 37 to 73 %)."""
    if rate is None:
        return "not evaluated"
    return f"{rate.successes}/{rate.episodes} ({level}{100 * rate.low:.0f} to {100 * rate.high:.0f} %)"


def with_interval(row: ProbeRow, key: str) -> str:
    """A number of the depth probe as everywhere: 0.119 (0.112 to 0.127)."""
    value, interval = getattr(row, key), (row.intervals or {}).get(key)
    if interval is None:
        return number(value)
    return f"{number(value)} ({number(interval[0])} to {number(interval[1])})"


def difference_text(found: Difference | None) -> str:
    """A difference of AbsRel with its interval: -0.011 (-0.015 to -0.007)."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return signed(found.absrel)
    return f"{signed(found.absrel)} ({signed(found.low)} to {signed(found.high)})"


def signed(value: float | None) -> str:
    return "not measured" if value is None or not isfinite(value) else f"{value:+.3f}"


def p_text(p: float | None) -> str:
    if p is None:
        return "not tested"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def upper(name: str) -> str:
    """The name at the head of a sentence."""
    return name[:1].upper() + name[1:]


def listed(names: Iterable[str], last: str = "and") -> str:
    """Names as in a sentence: a, b and c."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
