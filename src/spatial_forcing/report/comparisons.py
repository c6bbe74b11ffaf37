"""Paired comparison of two arms: success on the same episodes, errors by seed, steps to an error."""

from dataclasses import asdict
from itertools import groupby
from math import isfinite, nan
from statistics import fmean, stdev
from typing import Any, Literal

from spatial_forcing.estimates import (
    Episodes,
    difference_over_seeds,
    rate,
    rate_difference,
    rate_ratio,
)
from spatial_forcing.power import (
    ALPHA,
    detectable_difference,
    detectable_mean_difference,
    detectable_with,
    pairs_needed,
    seeds_to_show,
)
from spatial_forcing.reach import Curve, ratio_to_target, steps_to_target
from spatial_forcing.report.measures import amount_of_data, data_unit, finite, rollouts, spread
from spatial_forcing.report.records import Comparison, Errors, Spread, ToTarget
from spatial_forcing.results import Evaluation, Results, RunResults
from spatial_forcing.stats import StatsError, holm, mcnemar_over_seeds, paired_t_test

# A run of a and a run of b with equal seed and data.
Pair = tuple[RunResults, RunResults]
POINTS = 100


def compare(results: Results, a: str, b: str) -> Comparison:
    """Compares two arms over their common seeds, on all of the data; ``problem`` says why without a test."""
    pairs = seed_pairs(results, a, b)
    found = Comparison(
        a=a,
        b=b,
        errors=errors(pairs),
        steps_to_target=steps_to(pairs),
        data_to_target=data_to(results, a, b),
    )
    found.step, evaluated = at_last_common_step(pairs, lambda e: bool(e.episodes))
    if found.step is None:
        found.problem = no_test(pairs)
        return found
    found.seeds = list(evaluated)
    try:
        return found.model_copy(update=success_compared(evaluated))
    except StatsError as error:
        found.problem = str(error)
        return found


def seed_pairs(results: Results, a: str, b: str, fraction: float | None = None) -> dict[int, Pair]:
    """The runs of two arms that have a seed in common, on one fraction of the data."""
    runs_b = {run.seed: run for run in results.runs_of(b, fraction)}
    runs_a = results.runs_of(a, fraction)
    return {run.seed: (run, runs_b[run.seed]) for run in runs_a if run.seed in runs_b}


def at_last_common_step(
    pairs: dict[int, Pair], usable: Any
) -> tuple[int | None, dict[int, tuple[Evaluation, Evaluation]]]:
    """The last step at which a seed of both arms was evaluated, with the evaluations of all seeds that have
    it."""
    by_seed = {
        seed: [{e.step: e for e in run.evaluations if usable(e)} for run in pair]
        for seed, pair in pairs.items()
    }
    step = max((step for a, b in by_seed.values() for step in a.keys() & b.keys()), default=None)
    return step, {seed: (a[step], b[step]) for seed, (a, b) in by_seed.items() if step in a and step in b}


def no_test(pairs: dict[int, Pair]) -> str:
    """Reason why success cannot be compared."""
    if not pairs:
        return "they have no seed in common"
    evaluations = [e for pair in pairs.values() for run in pair for e in run.evaluations]
    if evaluations and not any(e.episodes for e in evaluations):
        return "there were no rollouts"
    return "there is no step at which both were evaluated"


# ---- success -----------------------------------------------------------------------------------------------


def success_compared(evaluated: dict[int, tuple[Evaluation, Evaluation]]) -> dict[str, Any]:
    """Tests and intervals of success, paired by seed and episode.

    Seeds whose arms ran other episodes are left out, and named.

    Raises:
        StatsError: that is all of them.
    """
    tables: dict[int, tuple[Episodes, Episodes]] = {}
    left_out = {}
    for seed, pair in evaluated.items():
        a, b = (rollouts(e.episodes) for e in pair)
        if a.keys() == b.keys():
            tables[seed] = a, b
        else:
            left_out[seed] = f"episodes of one arm alone: {len(a.keys() ^ b.keys())}"
    if not tables:
        raise StatsError(
            "The arms were not evaluated on the same episodes: "
            + "; ".join(f"of seed {seed} {reason}" for seed, reason in left_out.items())
        )
    by_a, by_b = ({seed: pair[i] for seed, pair in tables.items()} for i in (0, 1))
    tested = mcnemar_over_seeds(
        {seed: {name: (bool(a[name]), bool(b[name])) for name in a} for seed, (a, b) in tables.items()}
    )
    difference = rate_difference(by_a, by_b)
    return asdict(tested) | {
        "seeds": list(tables),
        "left_out": left_out,
        "success_a": rate(by_a),
        "success_b": rate(by_b),
        "difference": spread(difference, POINTS),
        "ratio": spread(rate_ratio(by_a, by_b)),
        "by_seed": {s: POINTS * (sum(b.values()) - sum(a.values())) / len(a) for s, (a, b) in tables.items()},
        "variance": difference.variance,
    }


def correct(comparisons: list[Comparison]) -> list[Comparison]:
    """Fills in the p-values with Holm's correction, over the arms that were compared with the same arm.

    Not over the arms that one is compared with: its gain counts only if it holds against all of them, which
    needs no correction (Berger 1982, Technometrics 24:295). What the strictest of the corrected tests could
    show is filled in as well.
    """
    tests: list[tuple[str, Any]] = [(c.a, c) for c in comparisons]
    tests += [(c.a, c.errors) for c in comparisons if c.errors is not None]
    known = [(type(of).__name__, a, of) for a, of in tests if of.p_value is not None]
    known.sort(key=lambda one: one[:2])
    for _, family in groupby(known, key=lambda one: one[:2]):
        members = [of for _, _, of in family]
        for of, p in zip(members, holm([of.p_value for of in members]), strict=True):
            of.p_holm = p
            if isinstance(of, Comparison):
                could_show(of, ALPHA / len(members))
            else:
                differences = list(of.by_seed.values())
                of.level = ALPHA / len(members)
                of.detectable = detectable_mean_difference(
                    len(differences), stdev(differences), alpha=of.level
                )
    return comparisons


def could_show(c: Comparison, level: float) -> None:
    """Fills in the smallest difference that a comparison could show, and the seeds for the one it has."""
    pairs, discordant = episodes_of(c), (c.only_a or 0) + (c.only_b or 0)
    seen = (c.difference.value or 0) / POINTS if c.difference else 0
    c.level = level
    if c.variance is None or (c.variance.total == 0 and len(c.seeds) > 1):
        least, needed = None, None
    elif len(c.seeds) == 1:
        least = detectable_difference(pairs, discordant=discordant / pairs, alpha=level)
        needed = pairs_needed(seen, discordant=discordant / pairs, alpha=level) if seen > 0 else None
    else:
        least = detectable_with(c.variance, alpha=level)
        each = pairs // len(c.seeds)
        needed = seeds_to_show(seen, c.variance, len(c.seeds), each, alpha=level) if seen > 0 else None
    c.detectable, c.needed = None if least is None else POINTS * least, needed


def episodes_of(c: Comparison) -> int:
    """Number of paired episodes, over all seeds."""
    return sum(x or 0 for x in (c.both, c.only_a, c.only_b, c.neither))


# ---- held-out error ----------------------------------------------------------------------------------------


def errors(pairs: dict[int, Pair]) -> Errors | None:
    """Held-out errors at the last step at which a seed of both arms has one; None if none has.

    A run that diverged has an error that is not finite there: it is named, left out of the numbers, and
    nothing is tested, for the seeds that are left are no fair sample.
    """
    step, found = at_last_common_step(pairs, lambda e: e.heldout_error is not None)
    if step is None:
        return None
    diverged = [
        f"{run.arm} in seed {seed}"
        for seed, pair in found.items()
        for run, e in zip(pairs[seed], pair, strict=True)
        if finite(e.heldout_error) is None
    ]
    kept = {s: pair for s, pair in found.items() if all(finite(e.heldout_error) is not None for e in pair)}
    a, b = ([float(pair[i].heldout_error or 0) for pair in kept.values()] for i in (0, 1))
    return Errors(
        step=step,
        seeds=list(kept),
        a=fmean(a) if a else nan,
        b=fmean(b) if b else nan,
        difference=spread(difference_over_seeds(a, b)) if kept else Spread(value=None),
        by_seed={seed: y - x for seed, x, y in zip(kept, a, b, strict=True)},
        p_value=paired_t_test(a, b) if kept and not diverged else None,
        diverged=diverged,
    )


def steps_to(pairs: dict[int, Pair]) -> ToTarget | None:
    """Training steps of both arms to a's last held-out error, over the seeds in which both have errors.

    None where both were measured at one step only, which says nothing about steps, and where a run diverged,
    whose last error is none to reach.
    """
    if not all(isfinite(error) for of in pairs.values() for run in of for error in _known_errors(run)):
        return None
    curves = {seed: (_error_curve(a), _error_curve(b)) for seed, (a, b) in pairs.items()}
    usable = {seed: (a, b) for seed, (a, b) in curves.items() if a.steps and b.steps}
    if all(len(a.steps) == len(b.steps) == 1 for a, b in usable.values()):
        return None
    return _to_target(usable, "steps")


def data_to(results: Results, a: str, b: str) -> ToTarget | None:
    """Amount of data of both arms to the held-out error of a on all of the data; None with one amount.

    A seed counts once a has finished on all of the data; points are finished runs.
    """
    if len(results.fractions()) < 2:
        return None
    unit = data_unit(results.runs)
    curves: dict[int, tuple[Curve, Curve]] = {}
    for run in results.runs_of(a):
        points = []
        for fraction in results.fractions():
            pair = seed_pairs(results, a, b, fraction).get(run.seed)
            last = [finite(one.evaluations[-1].heldout_error) for one in pair or () if one.finished]
            amount = amount_of_data(pair[0], unit) if pair else 0
            if any(amount == x for x, _, _ in points):
                continue  # two fractions that come to the same number of episodes
            if pair and len(last) == 2 and last[0] is not None and last[1] is not None:
                points.append((amount, last[0], last[1]))
        if points and points[-1][0] == amount_of_data(run, unit):
            x, y_a, y_b = (list(column) for column in zip(*points, strict=True))
            curves[run.seed] = Curve(x, y_a), Curve(x, y_b)
    return _to_target(curves, unit)


def _error_curve(run: RunResults) -> Curve:
    points = [(e.step, e.heldout_error) for e in run.evaluations if finite(e.heldout_error) is not None]
    return Curve([step for step, _ in points], [float(error or 0) for _, error in points])


def _known_errors(run: RunResults) -> list[float]:
    return [e.heldout_error for e in run.evaluations if e.heldout_error is not None]


def _to_target(
    curves: dict[int, tuple[Curve, Curve]], unit: Literal["steps", "episodes", "% of the data"]
) -> ToTarget | None:
    if not curves:
        return None
    reaches = {seed: steps_to_target(*pair) for seed, pair in curves.items()}
    ratio = ratio_to_target(list(reaches.values()))
    return ToTarget(
        unit=unit,
        target=fmean(reach.target for reach in reaches.values()),
        a={seed: str(reach.a) for seed, reach in reaches.items()},
        b={seed: str(reach.b) for seed, reach in reaches.items()},
        ratio=str(ratio),
        bounds=ratio.bounds,
    )
