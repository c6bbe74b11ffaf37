"""The verdict of a comparison: what is shown, what is not, and what it would take.

A gain of an arm counts if it holds against the plain arm *and* against every control, whose targets know
nothing of the image: what a control gains as well, the teacher's content did not bring.
"""

from collections.abc import Sequence
from statistics import stdev

from spatial_forcing.power import ALPHA, POWER, seeds_needed
from spatial_forcing.report.comparisons import episodes_of
from spatial_forcing.report.notes import probe_gains
from spatial_forcing.report.records import Comparison, Errors, Summary, Verdict
from spatial_forcing.report.wording import (
    corrected_text,
    listed,
    number,
    rate_text,
    signed,
    spread_text,
    upper,
)

# More pairs of episodes than these are not counted out: nobody runs them.
MANY = 10_000


def verdict(summary: Summary) -> Verdict:
    """The verdict of a comparison, in plain sentences with numbers."""
    compared = summary.comparisons
    if not compared:
        lines = any(arm.role == "reference" for arm in summary.arms.values())
        beside = "; the others are reference lines" if lines else ""
        text = f"Nothing is tested: the results hold no second arm{beside}."
        return Verdict(headline=f"{text} {seeds_note(summary)}", shown=[], not_shown=[], takes=[])
    arms = [[c for c in compared if c.b == b] for b in dict.fromkeys(c.b for c in compared)]
    lines = [
        (better(c, by) or worse(c, by), claim(c, by) + beside_plain(c, by, summary))
        for of in arms
        for by in [measure(of)]
        for c in of
    ]
    by_success = [c for of in arms if measure(of) == "success" for c in of]
    lines += [(True, claim(c, "error")) for c in by_success if better(c, "error") or worse(c, "error")]
    return Verdict(
        headline=" ".join([*headlines(arms, summary), *so_far(summary), seeds_note(summary)]),
        shown=[text for shown, text in lines if shown] + probe_gains(summary, shared=False),
        not_shown=[
            *(text for shown, text in lines if not shown),
            # Where success was to be compared and could not be, arms are judged by their errors: say so.
            *(
                _no_claim(c)
                for of in arms
                if measure(of) == "error"
                for c in of
                if c.problem and c.errors and c.step
            ),
            *no_control(summary),
        ],
        takes=[text for of in arms for text in what_it_takes(of)],
    )


# ---- one comparison ----------------------------------------------------------------------------------------


def measure(compared: Sequence[Comparison]) -> str:
    """The criterion for an arm: success, or held-out error where nothing was solved or no rollout ran."""
    return "success" if any(c.both or c.only_a or c.only_b for c in compared) else "error"


def different(c: Comparison, by: str) -> bool:
    """Whether two arms differ significantly, after Holm's correction.

    McNemar's test is about these trained policies. With several seeds the interval over seeds and episodes
    must exclude zero as well.
    """
    if by == "error":
        return c.errors is not None and c.errors.p_holm is not None and c.errors.p_holm < ALPHA
    if c.p_holm is None or c.difference is None or c.p_holm >= ALPHA:
        return False
    low, high = c.difference.low, c.difference.high
    return len(c.seeds) < 2 or low is None or high is None or low > 0 or high < 0


def gain(c: Comparison, by: str) -> float:
    """Gain of b over a, positive if b is better."""
    if by == "error":
        return 0.0 if c.errors is None else -(c.errors.difference.value or 0)
    return 0.0 if c.difference is None else c.difference.value or 0


def better(c: Comparison, by: str) -> bool:
    return different(c, by) and gain(c, by) > 0


def worse(c: Comparison, by: str) -> bool:
    return different(c, by) and gain(c, by) < 0


def not_compared(c: Comparison, by: str) -> bool:
    """Whether two arms could not be compared by this criterion."""
    return c.errors is None or bool(c.errors.diverged) if by == "error" else c.problem is not None


def fell_behind(control: str, by: str, summary: Summary) -> bool:
    """Whether a control did worse than the plain arm by its test alone: it guards a caveat, so early."""
    own = next((c for c in summary.against_plain if c.b == control), None)
    if own is None:
        return False
    p_value = own.p_value if by == "success" else own.errors and own.errors.p_value
    return p_value is not None and p_value < ALPHA and gain(own, by) < 0


def beside_plain(c: Comparison, by: str, summary: Summary) -> str:
    """Caveat on a gain over a control that did worse than plain, by an arm that did not beat plain."""
    over_plain = [one for one in summary.comparisons if (one.a, one.b) == (summary.plain_arm, c.b)]
    if summary.arms[c.a].role != "control" or not better(c, by) or any(better(one, by) for one in over_plain):
        return ""
    if not fell_behind(c.a, by, summary):
        return ""
    return (
        f" {upper(c.a)} itself did worse than {summary.plain_arm}: that a wrong target costs says nothing "
        "for the teacher's content."
    )


def claim(c: Comparison, by: str) -> str:
    """Sentence on one comparison of two arms, with its numbers."""
    if by == "error":
        return _error_claim(c, c.errors) if c.errors else _no_claim(c)
    if c.problem or c.success_a is None or c.success_b is None:
        return _no_claim(c)
    numbers = (
        f"{rate_text(c.success_b)} against {rate_text(c.success_a, level='')}, difference "
        f"{spread_text(c.difference, 0)} points, {corrected_text(c.p_value, c.p_holm)}"
    )
    if different(c, by):
        return f"{upper(c.b)} succeeded {'more' if better(c, by) else 'less'} often than {c.a}: {numbers}."
    if c.p_holm is not None and c.p_holm < ALPHA:
        numbers += "; the interval includes zero, so other seeds and episodes may undo it"
    return f"That {c.b} succeeds more often than {c.a}: {numbers}."


def _error_claim(c: Comparison, errors: Errors) -> str:
    numbers = f"{number(errors.b)} against {number(errors.a)}, difference {spread_text(errors.difference)}"
    if errors.diverged:
        numbers += f", not tested: the error of {listed(errors.diverged)} is not finite (the run diverged)"
    elif errors.p_value is None:
        numbers += ", no test over one seed" if len(errors.seeds) == 1 else ", not tested"
    else:
        test = f"paired t-test over {len(errors.seeds)} seeds"
        numbers += f", {corrected_text(errors.p_value, errors.p_holm)} ({test})"
    if different(c, "error"):
        which = "lower" if better(c, "error") else "higher"
        return f"{upper(c.b)} had a {which} action error on held-out demonstrations than {c.a}: {numbers}."
    return f"That {c.b} has a lower action error on held-out demonstrations than {c.a}: {numbers}."


def _no_claim(c: Comparison) -> str:
    problem = (c.problem or "nothing was measured").rstrip(".")
    return f"{upper(c.b)} and {c.a} cannot be compared: {problem}."


# ---- the headline ------------------------------------------------------------------------------------------


def headlines(arms: Sequence[Sequence[Comparison]], summary: Summary) -> list[str]:
    """Headline of every arm; arms of which the same is not shown share a sentence."""
    shared: dict[str, list[str]] = {}
    for of in arms:
        b, text = of[0].b, headline(of, summary)
        opening = f"That {b} helps is not shown"
        same = text.startswith(opening)
        shared.setdefault(text.removeprefix(opening) if same else text, []).extend([b] * same)
    return [
        f"That {listed(names)} {'help' if len(names) > 1 else 'helps'} is not shown"
        + (text.replace("though it did", "though they did") if len(names) > 1 else text)
        if names
        else text
        for text, names in shared.items()
    ]


def headline(compared: Sequence[Comparison], summary: Summary) -> str:
    """Headline for one arm, against all that it was compared with."""
    b, by = compared[0].b, measure(compared)
    verb = "succeeded more often" if by == "success" else "had a lower held-out action error"
    controls = [c for c in compared if summary.arms[c.a].role == "control"]
    rivals = [c for c in compared if c not in controls]
    level = [c.a for c in controls if not better(c, by)]
    if not any(c.errors if by == "error" else not c.problem for c in compared):
        return _no_claim(compared[0])
    unknown = [c.a for c in rivals if not_compared(c, by)]
    if unknown:
        return f"That {b} helps is not shown: it could not be compared with {listed(unknown)}."
    if not rivals or not all(better(c, by) for c in rivals):
        text = _not_better([c for c in rivals if not better(c, by)], controls, by)
        fell = [c.a for c in controls if better(c, by) and fell_behind(c.a, by, summary)]
        if fell and "though it did better" in text:
            return f"{text.removesuffix('.')}; {listed(fell)} did worse than {summary.plain_arm}."
        return text
    ahead = f"{upper(b)} {verb} than {listed(c.a for c in rivals)}"
    if not controls:
        return f"{ahead}. Whether a target that knows nothing of the image does as well is not known."
    if level:
        return (
            f"{ahead}, but not significantly more so than {listed(level, 'or')}, whose target knows nothing "
            "of the image: that the teacher's content brought the gain is not shown."
        )
    return (
        f"{ahead} and than {listed(c.a for c in controls)}, whose targets know nothing of the image: a gain "
        "that has to do with the teacher's content."
    )


def _not_better(rivals: Sequence[Comparison], controls: Sequence[Comparison], by: str) -> str:
    compared = rivals or controls
    b, names = compared[0].b, listed((c.a for c in compared), "or")
    if not rivals and all(better(c, by) for c in controls):
        what = "succeeded more often" if by == "success" else "had a lower held-out action error"
        names = listed(c.a for c in controls)
        return f"{upper(b)} {what} than {names}, and was compared with no arm that has no such target."
    if any(worse(c, by) for c in compared):
        names = listed(c.a for c in compared if worse(c, by))
        how = "succeeded less often" if by == "success" else "had a higher held-out action error"
        return f"{upper(b)} {how} than {names}."
    what = "more success" if by == "success" else "a lower held-out action error"
    text = f"That {b} helps is not shown: no significant sign of {what} than {names}"
    ahead = [c.a for c in controls if better(c, by)] if rivals else []
    return f"{text}, though it did better than {listed(ahead)}." if ahead else f"{text}."


def so_far(summary: Summary) -> list[str]:
    """Sentence on an unfinished comparison."""
    if all(arm.finished for arm in summary.arms.values()):
        return []
    return ["The comparison is unfinished: this is what it says so far."]


def seeds_note(summary: Summary) -> str:
    """Sentence on what the number of seeds allows to conclude."""
    arms = [arm for arm in summary.arms.values() if arm.role != "reference"]
    seeds = sorted({seed for arm in arms for seed in arm.seeds_planned})
    shared = [set(c.seeds or (c.errors.seeds if c.errors else [])) for c in summary.comparisons]
    used = sorted(set().union(*shared))
    if len(seeds) == 1 or (used and max(map(len, shared)) == 1):
        return f"One seed ({listed(map(str, used or seeds))}): a demonstration, not evidence."
    if any(arm.seeds_planned != seeds for arm in arms):
        return "The arms have different seeds; only those that two arms share are compared."
    left_out = ", of which some are left out below" if any(of != set(seeds) for of in shared) else ""
    return f"{len(seeds)} seeds each{left_out}.{_added(summary)}"


def _added(summary: Summary) -> str:
    """Sentence on seeds that somebody added who could know what the others say."""
    if not summary.seeds_added:
        return ""
    seeds, were = ("Seed", "was") if len(summary.seeds_added) == 1 else ("Seeds", "were")
    added = listed(map(str, summary.seeds_added))
    return (
        f" {seeds} {added} {were} added after results of the others were known; the tests do not correct for "
        "that."
    )


def no_control(summary: Summary) -> list[str]:
    """Sentence on what is not known without controls."""
    if any(summary.arms[c.a].role == "control" for c in summary.comparisons):
        return []
    return ["That the teacher's content matters: no control was compared."]


# ---- what it would take ------------------------------------------------------------------------------------


def what_it_takes(compared: Sequence[Comparison]) -> list[str]:
    """Sentences on how many episodes or seeds would show what one arm did not show."""
    by, found = measure(compared), []
    level = [c for c in compared if not better(c, by)]
    if by == "success":
        found += _episodes([c for c in level if c.p_value is not None])
    else:
        if any(c.p_value is not None for c in compared):
            found.append("More steps, or an easier task: no episode was solved.")
        found += _seeds([(c, c.errors) for c in level if c.errors and c.errors.detectable is not None])
    if max(len(c.seeds) or len(c.errors.seeds if c.errors else []) for c in compared) == 1:
        found.append("More seeds, three at least: one says nothing about other trainings.")
    return found


def _episodes(level: Sequence[Comparison]) -> list[str]:
    """Sentences on what difference these episodes show for one arm, and what the observed one needs."""
    if not level:
        return []
    seeds = [len(c.seeds) for c in level]
    each = [episodes_of(c) // len(c.seeds) for c in level]
    least = [c.detectable for c in level if c.detectable is not None]
    span = f"differences of {_span(least, 0)} points or more" if least else "no difference at all"
    if max(seeds) == 1:
        text = f"{upper(level[0].b)}: {_span(each, 0)} pairs of episodes show {span} (power {POWER})."
    else:
        text = (
            f"{upper(level[0].b)}: {_span(seeds, 0)} seeds of {_span(each, 0)} episodes that vary as these "
            f"show {span} (power {POWER})."
        )
    text += "".join(_needed(c) for c in level if gain(c, "success") > 0)
    lost = [f"{c.a} ({gain(c, 'success'):+.0f} points)" for c in level if gain(c, "success") <= 0]
    if lost:
        text += f" Nothing was gained against {listed(lost)}; more episodes alone would not change that."
    return [text]


def _needed(c: Comparison) -> str:
    """Sentence on what would show the gain that was seen."""
    seen = f"the {gain(c, 'success'):+.0f} points seen against {c.a}"
    if len(c.seeds) == 1:
        if c.needed is None or c.needed > MANY:
            return f" {upper(seen)} would take more than {MANY} pairs to show."
        return (
            f" To show {seen} takes about {float(f'{c.needed:.2g}'):.0f} pairs, if other seeds do the same."
        )
    if c.needed is None:
        return f" No number of seeds on these episodes would show {seen}: more episodes would have to."
    return f" To show {seen} takes about {max(c.needed, len(c.seeds) + 1)} seeds."


def _seeds(level: Sequence[tuple[Comparison, Errors]]) -> list[str]:
    """Sentences on what error difference these seeds detect for one arm, and how many the seen one needs."""
    if not level:
        return []
    least = [e.detectable for _, e in level if e.detectable is not None]
    text = (
        f"{upper(level[0][0].b)}: {_span([len(e.seeds) for _, e in level], 0)} seeds that vary as these show "
        f"differences in action error of {_span(least, 3)} or more (power {POWER})."
    )
    for c, e in level:
        seen = e.difference.value or 0
        needed = seeds_needed(seen, stdev(e.by_seed.values()), alpha=e.level) if seen < 0 else None
        if needed and needed > len(e.seeds):
            text += f" To show the {signed(seen)} seen against {c.a} takes {needed} seeds."
    return [text]


def _span(values: Sequence[float], digits: int) -> str:
    """Formats one number, or the lowest and the highest."""
    texts = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(texts)
