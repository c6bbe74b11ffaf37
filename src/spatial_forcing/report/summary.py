"""Computes every number of the report from the results. ``report.json`` is a :class:`Summary`."""

from collections.abc import Sequence
from typing import Any

from spatial_forcing.estimates import ratio_over_seeds
from spatial_forcing.probe_results import Probe
from spatial_forcing.report.comparisons import compare, correct
from spatial_forcing.report.measures import (
    amount_of_data,
    data_unit,
    finite,
    known_points,
    mean_of_known,
    median_of_known,
    phases,
    spread,
    success,
)
from spatial_forcing.report.notes import notes
from spatial_forcing.report.records import (
    ArmSummary,
    Cost,
    Plots,
    Points,
    ProbeSummary,
    RunState,
    Series,
    Spread,
    Summary,
)
from spatial_forcing.report.verdict import verdict
from spatial_forcing.results import Episode, Evaluation, Provenance, Results, RunResults
from spatial_forcing.stats import Interval

CM = 100
# What is drawn of the training log, by what a quantity's name begins with.
# Logged of every step; what else is logged was measured in some of them.
EVERY_STEP = ("action_loss", "cosine")
LOGGED = ("action_loss", "cosine", "gradient_ratio", "gradient_cosine", "cka", "effective_rank")


def summarise(results: Results) -> Summary:
    """Computes the summary of a comparison's results."""
    plain = results.plain_arm
    others = [name for name in (*results.named("arm"), *results.named("control")) if name != plain]
    pairs = results.pairs()
    against_plain = [(plain, name) for name in others] if plain else []
    compared = {pair: compare(results, *pair) for pair in dict.fromkeys([*pairs, *against_plain])}
    correct([compared[pair] for pair in against_plain if pair not in pairs])  # the controls
    summary = Summary(
        **{name: getattr(results, name) for name in Provenance.model_fields},
        plain_arm=plain,
        arms={name: summarise_arm(results, name) for name in results.arms},
        runs=[run_state(run) for run in results.runs],
        comparisons=correct([compared[pair] for pair in pairs]),
        against_plain=[compared[pair] for pair in against_plain],
        probe=probe_summary(results.probe),
        plots=plots(results),
    )
    summary.verdict, summary.notes = verdict(summary), notes(summary)
    return summary


# ---- arms --------------------------------------------------------------------------------------------------


def summarise_arm(results: Results, name: str) -> ArmSummary:
    """Summarises an arm at its last evaluation, over the seeds that have it."""
    head, runs = results.arms[name], results.runs_of(name)
    step = max((run.evaluations[-1].step for run in runs if run.evaluations), default=None)
    last = {run.seed: e for run in runs for e in run.evaluations if e.step == step}
    by_seed = {seed: e.episodes for seed, e in last.items()}
    episodes = [episode for of in by_seed.values() for episode in of]
    errors = {seed: error for seed, e in last.items() if (error := finite(e.heldout_error)) is not None}
    return ArmSummary(
        **dict(head),
        seeds=list(last),
        seeds_planned=[run.seed for run in runs],
        steps=max((run.steps for run in runs), default=0),
        parameters=max((run.parameters for run in runs), default=0),
        evaluated_step=step,
        finished=bool(runs) and all(run.finished for run in runs),
        success=success(by_seed),
        tasks={
            task: success({seed: [e for e in of if e.task == task] for seed, of in by_seed.items()})
            for task in dict.fromkeys(episode.task for episode in episodes)
        },
        phases=phases(by_seed),
        final_distance_cm=mean_of_known((e.final_distance for e in episodes), CM),
        closest_distance_cm=mean_of_known((e.closest_distance for e in episodes), CM),
        heldout_error=mean_of_known(errors.values()),
        heldout_loss=mean_of_known(e.heldout_loss for e in last.values()),
        constant_error=mean_of_known(e.constant_error for e in last.values()),
        error_by_seed=errors,
        action_loss=mean_of_known(last_tenth(run) for run in runs),
        cost=cost(results, name),
    )


def last_tenth(run: RunResults) -> float | None:
    """Mean action loss in the last tenth of the steps so far: one batch alone is noise."""
    return mean_of_known(row.action_loss for row in run.curves if row.step > 0.9 * run.curves[-1].step)


def cost(results: Results, name: str) -> Cost:
    """Training cost of an arm, and its ratio to the plain arm's in the same seeds."""
    plain = {run.seed: run for run in results.runs_of(results.plain_arm)} if results.plain_arm else {}
    runs = results.runs_of(name)
    memory = [run.peak_memory_mb for run in runs if run.peak_memory_mb is not None]

    def ratio(quantity: Any) -> Spread | None:
        pairs = [(quantity(run), quantity(plain[run.seed])) for run in runs if run.seed in plain]
        pairs = [(x, y) for x, y in pairs if x and y]
        return spread(ratio_over_seeds(*zip(*pairs, strict=True))) if pairs else None

    return Cost(
        update_ms=mean_of_known((update_seconds(run) for run in runs), 1000),
        dataloading_ms=mean_of_known((dataloading_seconds(run) for run in runs), 1000),
        peak_memory_mb=max(memory, default=None),
        update_ratio=ratio(update_seconds),
        dataloading_ratio=ratio(dataloading_seconds),
        peak_memory_ratio=ratio(lambda run: run.peak_memory_mb),
    )


def update_seconds(run: RunResults) -> float | None:
    """Seconds per update, as measured, or the median of what was logged."""
    return run.seconds_per_step or median_of_known(row.update_s for row in run.curves)


def dataloading_seconds(run: RunResults) -> float | None:
    """Seconds of waiting for data per step, as measured, or the median of what was logged."""
    return run.dataloading_seconds or median_of_known(row.dataloading_s for row in run.curves)


def run_state(run: RunResults) -> RunState:
    return RunState(
        arm=run.arm,
        seed=run.seed,
        fraction=run.fraction,
        train_episodes=run.train_episodes,
        trained_steps=run.trained_steps,
        evaluated_step=run.evaluations[-1].step if run.evaluations else None,
        steps=run.steps,
        finished=run.finished,
    )


# ---- plots -------------------------------------------------------------------------------------------------

MEASURED = {
    "heldout_error": lambda e: e.heldout_error,
    "heldout_loss": lambda e: e.heldout_loss,
    "success": lambda e: mean_of_known((one.success for one in e.episodes), 100),
    "closest_distance_cm": lambda e: mean_of_known((one.closest_distance for one in e.episodes), CM),
}


def plots(results: Results) -> Plots:
    """Data of the plots: for each quantity, arm and seed, the points that exist."""
    rows = [row for run in results.runs for row in run.curves]
    logged = [
        key for key in dict.fromkeys(key for row in rows for key in row.plain()) if key.startswith(LOGGED)
    ]
    unit, by_data, success_by_data = None, {}, {}
    if len(results.fractions()) > 1:
        unit = data_unit(results.runs)
        by_data = {name: _by_data(results, unit, of) for name, of in MEASURED.items()}
        success_by_data = _success_by_data(results, unit)
    return Plots(
        logged={name: _series(results, lambda run, name=name: _logged(run, name)) for name in logged},
        measured={
            name: _series(results, lambda run, of=of: _evaluated(run.evaluations, of))
            for name, of in MEASURED.items()
        },
        by_data=by_data,
        success_by_data=success_by_data,
        data_unit=unit,
        probe_sites=results.probe_sites,
    )


def _series(results: Results, points: Any) -> Series:
    found = {name: {run.seed: points(run) for run in results.runs_of(name)} for name in results.arms}
    return {name: {seed: of for seed, of in by_seed.items() if of} for name, by_seed in found.items()}


def _logged(run: RunResults, name: str) -> Points:
    """What a run logged. Diagnostics are measured now and then, and logged until the next time: one that was
    measured once is no curve."""
    points = known_points((row.step, getattr(row, name, None)) for row in run.curves)
    sampled = name not in EVERY_STEP
    return [] if sampled and len({value for _, value in points}) < 2 else points


def _evaluated(evaluations: Sequence[Evaluation], quantity: Any) -> Points:
    return known_points((e.step, quantity(e)) for e in evaluations)


def _by_data(results: Results, unit: str, quantity: Any) -> Series:
    found: Series = {name: {} for name in results.arms}
    for run in sorted(results.runs, key=lambda run: run.fraction):
        if run.finished:
            points = known_points([(amount_of_data(run, unit), quantity(run.evaluations[-1]))])
            found[run.arm].setdefault(run.seed, []).extend(points)
    return {name: {seed: of for seed, of in by_seed.items() if of} for name, by_seed in found.items()}


def _success_by_data(results: Results, unit: str) -> dict[str, dict[int, Interval]]:
    """By arm and amount of data, the successes of all finished seeds."""
    rolled: dict[str, dict[int, dict[int, list[Episode]]]] = {name: {} for name in results.arms}
    for run in sorted(results.runs, key=lambda run: run.fraction):
        if run.finished:
            at = rolled[run.arm].setdefault(amount_of_data(run, unit), {})
            at.setdefault(run.seed, run.evaluations[-1].episodes)
    rates = {name: {x: success(of) for x, of in by.items()} for name, by in rolled.items()}
    return {name: {x: rate for x, rate in by.items() if rate} for name, by in rates.items()}


# ---- the probe ---------------------------------------------------------------------------------------------


def probe_summary(probe: Probe | None) -> ProbeSummary | None:
    """Summarises the depth probe for the page."""
    if probe is None:
        return None
    return ProbeSummary(
        rows=probe.rows,
        versus=compared_with(probe),
        depth=probe.depth,
        train_frames=probe.train_frames,
        test_frames=probe.test_frames,
        test_episodes=probe.test_episodes,
    )


def compared_with(probe: Probe) -> list[str]:
    """The rows that other rows are compared with."""
    return list(dict.fromkeys(other for row in probe.rows for other in row.differences or {}))
