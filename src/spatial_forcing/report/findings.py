"""What the numbers say, in sentences: the same words for better, worse and no difference."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

ALPHA = 0.05
# A policy whose held-out error is within this factor of the blind policy's has not learned to look.
BLIND_FACTOR = 0.95
# Where knowing the state leaves more than this share of the blind policy's error, eyes cannot save much
# either.
STATE_FACTOR = 0.7


def headline(summary: Mapping[str, Any]) -> str:
    """What was found, in a few plain sentences with their numbers."""
    if not summary["comparisons"]:
        return f"There is nothing to compare: the results hold no second arm. {seeds_note(summary)}"
    claims = [verdict(c, summary) for c in summary["comparisons"] if not against_control(c, summary)]
    return " ".join([*claims, *controls_verdicts(summary), seeds_note(summary)])


def against_control(found: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    """Whether a comparison is with a control: an arm whose target knows nothing of the frame."""
    return summary["arms"][found["a"]]["role"] == "control"


def controls_verdicts(summary: Mapping[str, Any]) -> list[str]:
    """Whether what each arm gained is more than a target without content gives, in words."""
    tested = [c for c in summary["comparisons"] if against_control(c, summary) and not c["problem"]]
    if not tested:
        return [
            "No control was compared: whether a target that knows nothing of the picture does as well is "
            "not known."
        ]
    return [
        controls_verdict([c for c in tested if c["b"] == b], summary)
        for b in dict.fromkeys(c["b"] for c in tested)
    ]


def controls_verdict(tested: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """One arm against the controls."""
    b = tested[0]["b"]
    rates = ", ".join(
        f"{c['a']} {rate_text(c['success_a'], level='')}, {p_text(c['p_value'])}" for c in tested
    )
    level = [c["a"] for c in tested if not better(c)]
    gained = any(
        better(c)
        for c in summary["comparisons"]
        if c["b"] == b and not c["problem"] and not against_control(c, summary)
    )
    controls = f"targets that know nothing of the picture ({rates})"
    if not level:
        cause = ", so its gain has to do with the teacher's content" if gained else ""
        return f"{upper(b)} succeeded more often than the controls, {controls}{cause}."
    if gained:
        return (
            f"It did not succeed significantly more often than {' and '.join(level)}, of the controls, "
            f"{controls}: that the teacher's content brought the gain is not shown."
        )
    return f"Nor is it shown to be ahead of the controls, {controls}."


def better(found: Mapping[str, Any]) -> bool:
    """Whether b succeeded significantly more often than a."""
    return found["p_value"] < ALPHA and found["difference_points"] > 0


def verdict(found: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One comparison of success in words."""
    a, b = found["a"], found["b"]
    if found["problem"]:
        return f"{upper(b)} and {a} cannot be compared: {found['problem'].rstrip('.')}."
    if found["p_value"] >= ALPHA:
        claim = f"No significant difference in success between {b} and {a}"
    else:
        claim = f"{upper(b)} succeeded {'more' if found['difference_points'] > 0 else 'less'} often than {a}"
    rates = f"{b} {rate_text(found['success_b'])} against {a} {rate_text(found['success_a'], level='')}"
    test = f"McNemar's exact test on the same {found['success_a']['episodes']} episodes"
    text = f"{claim}: {rates}, {p_text(found['p_value'])} ({test}), teacher {summary['teacher']['name']}."
    if found["step"] < min(summary["arms"][name]["steps"] for name in (a, b)):
        text += f" This is at step {found['step']}, the last at which both were evaluated, not at the end."
    return text


def seeds_note(summary: Mapping[str, Any]) -> str:
    """How much the number of seeds allows to say."""
    seeds = sorted({arm["seed"] for arm in summary["arms"].values() if arm["role"] != "reference"})
    if len(seeds) > 1:
        listed = ", ".join(map(str, seeds))
        return f"The arms have different seeds ({listed}), so they differ in more than the method."
    named = f" ({seeds[0]})" if seeds else ""
    return f"One seed{named}: a demonstration, not evidence."


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a careful reader would add: what is unfinished, the action error, the references."""
    arms, comparisons = summary["arms"], summary["comparisons"]
    found = unfinished(arms)
    for comparison in comparisons:
        found += error_notes(comparison)
        if not comparison["problem"] and not any(comparison[k] for k in ("both", "only_a", "only_b")):
            found.append(f"Neither {comparison['b']} nor {comparison['a']} solved an episode.")
    found += reference_notes(arms)
    found += probe_notes((summary["probe"] or {"rows": []})["rows"], arms)
    if len(comparisons) > 1:
        found.append(f"The p-values are not corrected for {len(comparisons)} comparisons.")
    return found


def unfinished(arms: Mapping[str, Any]) -> list[str]:
    """A sentence for each arm that has not reached its last step or was not evaluated there."""
    found = []
    for name, arm in arms.items():
        if not arm["finished"]:
            at = arm["evaluated_step"]
            evaluated = "has not been evaluated" if at is None else f"was last evaluated at step {at}"
            trained = f"was trained for {arm['trained_steps']} of {arm['steps']} steps"
            found.append(f"{upper(name)} is unfinished: it {trained} and {evaluated}.")
    return found


def error_notes(found: Mapping[str, Any]) -> list[str]:
    """Held-out error at the last common step, and how soon the baseline's last one was reached."""
    a, b, reach, errors = found["a"], found["b"], found["reach"], found["heldout"]
    if reach is None:
        return []
    text = "Action error on held-out demonstrations"
    if errors is not None:
        text += f" at step {errors['step']}: {b} {number(errors['b'])}, {a} {number(errors['a'])}"
    text += "."
    target = f"the last error of {a} ({number(reach['target'])})"
    if reach["steps_b"] is None:
        return [f"{text} {upper(b)} never reached {target}, so there is no ratio of steps."]
    if reach["ratio"] is not None and reach["steps_a"] == found["first_step"]:
        return [f"{text} {upper(a)} was there at its first evaluation already: no ratio of steps."]
    text += f" {upper(b)} reached {target} at step {reach['steps_b']}, {a} itself at step {reach['steps_a']}"
    if reach["ratio"] is None:
        return [f"{text}."]
    return [f"{text}: {reach['ratio']:.1f} times as many steps, no finer than the evaluations are spaced."]


def reference_notes(arms: Mapping[str, Any]) -> list[str]:
    """What the blind and the state references say about the others."""
    blind, state = (arms.get(name, {}).get("heldout_error") for name in ("blind", "state"))
    if blind is None:
        return ["No blind reference was evaluated: how much of this task needs no pictures is not known."]
    found = []
    for name, arm in arms.items():
        error = arm["heldout_error"]
        if arm["role"] != "reference" and error is not None and error >= BLIND_FACTOR * blind:
            found.append(
                f"{upper(name)} is hardly better than the blind policy by its action error ({number(error)} "
                f"against {number(blind)}): in {arm['evaluated_step']} steps it has not learned to use its "
                "pictures. How it would do with more steps, this run cannot say."
            )
    if state is not None and state > STATE_FACTOR * blind:
        found.append(
            f"Knowing the true state helps little ({number(state)} against {number(blind)} blind): the "
            "action error of this task says little about seeing."
        )
    return found


def probe_notes(rows: Sequence[Mapping[str, Any]], arms: Mapping[str, Any]) -> list[str]:
    """Says when the probe gains nothing from a policy's tokens over the mean depth, which sees nothing."""
    mean = next((row["absrel"] for row in rows if row["name"] == "mean depth"), None)
    below = [row for row in rows if row["name"] in arms and mean is not None and not _beats_mean(row, mean)]
    if not below:
        return []
    names = ", ".join(f"{row['name']} {number(row['absrel'])}" for row in below)
    return [
        f"Depth probe: no better than the mean depth of each place (AbsRel {number(mean)}), which is the "
        f"same probe without tokens, or not by more than other held-out episodes could change: {names}. A "
        "linear map finds no depth in these tokens, or too little to tell."
    ]


def _beats_mean(row: Mapping[str, Any], mean: float) -> bool:
    """Whether AbsRel is below that of the mean depth, and so is its interval if there is one."""
    high = ((row.get("differences") or {}).get("mean depth") or {}).get("high")
    return row["absrel"] < mean and (high is None or high < 0)


def rate_text(rate: Mapping[str, Any] | None, level: str = "95 % ") -> str:
    """A success rate as everywhere in the report: 14/25 (95 % 37 to 73 %)."""
    if rate is None:
        return "not evaluated"
    low, high = 100 * rate["low"], 100 * rate["high"]
    return f"{rate['successes']}/{rate['episodes']} ({level}{low:.0f} to {high:.0f} %)"


def with_interval(row: Mapping[str, Any], key: str) -> str:
    """A number of the depth probe as everywhere: 0.119 (0.112 to 0.127)."""
    interval = (row.get("intervals") or {}).get(key)
    if interval is None:
        return number(row[key])
    return f"{number(row[key])} ({number(interval[0])} to {number(interval[1])})"


def difference_text(found: Mapping[str, Any] | None) -> str:
    """A difference of AbsRel with its interval: -0.011 (-0.015 to -0.007)."""
    if found is None:
        return "–"
    value, low, high = (found[key] for key in ("absrel", "low", "high"))
    if low is None or high is None:
        return signed(value)
    return f"{signed(value)} ({signed(low)} to {signed(high)})"


def signed(value: float | None) -> str:
    return "not measured" if value is None or not isfinite(value) else f"{value:+.3f}"


def p_text(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def upper(name: str) -> str:
    """The name at the head of a sentence."""
    return name[:1].upper() + name[1:]
