"""Paired comparison of two arms: success on the same episodes, errors by seed, steps to an error."""

from dataclasses import asdict
from itertools import groupby
from statistics import fmean, stdev
from typing import Any, Literal

from spatial_forcing.bootstrap import (
    bootstrap_difference,
    bootstrap_rate_difference,
    bootstrap_rate_ratio,
)
from spatial_forcing.power import detectable_difference, detectable_mean_difference
from spatial_forcing.reach import Curve, ratio_to_target, steps_to_target
from spatial_forcing.report.measures import amount_of_data, data_unit, finite, spread, success
from spatial_forcing.report.records import Comparison, Errors, ToTarget
from spatial_forcing.results import Evaluation, Results, RunResults
from spatial_forcing.stats import StatsError, holm, mcnemar, paired_t_test, stratified_mcnemar

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

    Raises:
        StatsError: a seed's arms ran other episodes.
    """
    tables, by_seed = {}, {"a": [], "b": []}
    for seed, pair in evaluated.items():
        a, b = (sorted(e.episodes, key=lambda one: (one.task, one.seed)) for e in pair)
        names = [[(one.task, one.seed) for one in of] for of in (a, b)]
        wins = [[one.success for one in of] for of in (a, b)]
        tables[seed] = mcnemar(*wins, a_episodes=names[0], b_episodes=names[1])
        by_seed["a"].append(wins[0])
        by_seed["b"].append(wins[1])
    tested = stratified_mcnemar(list(tables.values()))
    share = (tested.only_a + tested.only_b) / tested.episodes
    difference = bootstrap_rate_difference(by_seed["a"], by_seed["b"])
    detectable = detectable_difference(tested.episodes, discordant=share)
    return asdict(tested) | {
        "success_a": success([one for a, _ in evaluated.values() for one in a.episodes]),
        "success_b": success([one for _, b in evaluated.values() for one in b.episodes]),
        "difference": spread(difference, POINTS),
        "ratio": spread(bootstrap_rate_ratio(by_seed["a"], by_seed["b"])),
        "by_seed": {seed: POINTS * table.difference for seed, table in tables.items()},
        "detectable": None if detectable is None else POINTS * detectable,
    }


def correct(comparisons: list[Comparison]) -> list[Comparison]:
    """Fills in the p-values with Holm's correction, over the arms that were compared with the same arm.

    Not over the arms that one is compared with: its gain counts only if it holds against all of them, which
    needs no correction (Berger 1982, Technometrics 24:295).
    """
    tests: list[tuple[str, Any]] = [(c.a, c) for c in comparisons]
    tests += [(c.a, c.errors) for c in comparisons if c.errors is not None]
    known = [(type(of).__name__, a, of) for a, of in tests if of.p_value is not None]
    known.sort(key=lambda one: one[:2])
    for _, family in groupby(known, key=lambda one: one[:2]):
        members = [of for _, _, of in family]
        for of, p in zip(members, holm([of.p_value for of in members]), strict=True):
            of.p_holm = p
    return comparisons


# ---- held-out error ----------------------------------------------------------------------------------------


def errors(pairs: dict[int, Pair]) -> Errors | None:
    """Held-out errors at the last step at which a seed of both arms has one; None if none has."""
    step, found = at_last_common_step(pairs, lambda e: finite(e.heldout_error) is not None)
    if step is None:
        return None
    a, b = ([float(pair[i].heldout_error or 0) for pair in found.values()] for i in (0, 1))
    differences = [y - x for x, y in zip(a, b, strict=True)]
    return Errors(
        step=step,
        seeds=list(found),
        a=fmean(a),
        b=fmean(b),
        difference=spread(bootstrap_difference(a, b)),
        by_seed=dict(zip(found, differences, strict=True)),
        p_value=paired_t_test(a, b),
        detectable=detectable_mean_difference(len(a), stdev(differences)) if len(a) > 1 else None,
    )


def steps_to(pairs: dict[int, Pair]) -> ToTarget | None:
    """Training steps of both arms to a's last held-out error, over the seeds in which both have errors.

    None where both were measured at one step only, which says nothing about steps.
    """
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
            if pair and len(last) == 2 and last[0] is not None and last[1] is not None:
                points.append((amount_of_data(pair[0], unit), last[0], last[1]))
        if points and points[-1][0] == amount_of_data(run, unit):
            x, y_a, y_b = (list(column) for column in zip(*points, strict=True))
            curves[run.seed] = Curve(x, y_a), Curve(x, y_b)
    return _to_target(curves, unit)


def _error_curve(run: RunResults) -> Curve:
    points = [(e.step, e.heldout_error) for e in run.evaluations if finite(e.heldout_error) is not None]
    return Curve([step for step, _ in points], [float(error or 0) for _, error in points])


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
