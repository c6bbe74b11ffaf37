"""Every number the report shows, computed from the results. ``report.json`` is a :class:`Summary`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from statistics import fmean, median
from typing import Any

from spatial_forcing.report.findings import headline, notes
from spatial_forcing.report.records import (
    ArmSummary,
    Comparison,
    Errors,
    Plots,
    ProbeSummary,
    RatePoint,
    Summary,
)
from spatial_forcing.results import (
    ArmHead,
    CurveRow,
    Episode,
    Evaluation,
    Probe,
    Provenance,
    Results,
    RunResults,
)
from spatial_forcing.stats import Curve, Interval, StatsError, mcnemar, steps_to_target, wilson

CM = 100


class ArmResults(ArmHead, RunResults):
    """An arm with its first run."""


def first_runs(results: Results) -> dict[str, ArmResults]:
    """Each arm with its first run on the most data."""
    found = {name: results.runs_of(name) for name in results.arms}
    return {
        name: ArmResults(**dict(results.arms[name]), **dict(runs[0])) for name, runs in found.items() if runs
    }


def summarise(results: Results) -> Summary:
    """Computes the report's numbers."""
    arms = first_runs(results)
    summary = Summary(
        **_shared(results, Provenance),
        arms={name: summarise_arm(arm) for name, arm in arms.items()},
        comparisons=[compare(arms, a, b) for a, b in results.pairs()],
        probe=probe_summary(results.probe),
        plots=points(arms),
    )
    summary.headline, summary.notes = headline(summary), notes(summary)
    return summary


def _shared(record: Any, kind: type) -> dict[str, Any]:
    """The fields of a record that are those of a class it derives from."""
    return {name: getattr(record, name) for name in kind.model_fields}


# ---- arms --------------------------------------------------------------------------------------------------


def summarise_arm(arm: ArmResults) -> ArmSummary:
    """The state of one run at its last evaluation."""
    last = arm.evaluations[-1] if arm.evaluations else None
    episodes = last.episodes if last else []
    evaluated = last.step if last else None
    tasks = dict.fromkeys(episode.task for episode in episodes)
    return ArmSummary(
        **_shared(arm, ArmHead),
        seed=arm.seed,
        steps=arm.steps,
        parameters=arm.parameters,
        trained_steps=max([row.step for row in arm.curves] + [evaluated or 0]),
        evaluated_step=evaluated,
        finished=(evaluated or 0) >= arm.steps,
        success=success(episodes),
        tasks={task: success([e for e in episodes if e.task == task]) for task in tasks},
        final_distance_cm=_mean((e.final_distance for e in episodes), CM),
        closest_distance_cm=_mean((e.closest_distance for e in episodes), CM),
        heldout_error=_finite(last.heldout_error if last else None),
        action_loss=last_tenth(arm.curves),
        update_ms=_median((row.update_s for row in arm.curves), 1000),
        dataloading_ms=_median((row.dataloading_s for row in arm.curves), 1000),
    )


def success(episodes: Sequence[Episode]) -> Interval | None:
    """Success rate with Wilson's interval; None without episodes."""
    return wilson(sum(e.success for e in episodes), len(episodes)) if episodes else None


def last_tenth(curves: Sequence[CurveRow]) -> float | None:
    """Mean action loss in the last tenth of the steps so far: one batch alone is noise."""
    return _mean(row.action_loss for row in curves if row.step > 0.9 * curves[-1].step)


def points(arms: Mapping[str, ArmResults]) -> Plots:
    """What the plots draw: for each quantity and arm, the points that exist."""

    def logged(quantity: str) -> dict[str, list[tuple[int, float]]]:
        return {name: _points(arm.curves, quantity) for name, arm in arms.items()}

    return Plots(
        success={name: rates(arm.evaluations) for name, arm in arms.items()},
        heldout_error={name: _points(arm.evaluations, "heldout_error") for name, arm in arms.items()},
        closest_distance_cm={name: distances(arm.evaluations) for name, arm in arms.items()},
        action_loss=logged("action_loss"),
        cosine=logged("cosine"),
        gradient_ratio=logged("gradient_ratio"),
    )


def rates(evaluations: Sequence[Evaluation]) -> list[RatePoint]:
    """Success at each evaluation that has episodes."""
    found = [(e.step, success(e.episodes)) for e in evaluations]
    return [RatePoint(**asdict(rate), step=step) for step, rate in found if rate]


def distances(evaluations: Sequence[Evaluation]) -> list[tuple[int, float]]:
    """Mean closest distance to the goal at each evaluation that measured it, centimetres."""
    found = [(e.step, _mean((one.closest_distance for one in e.episodes), CM)) for e in evaluations]
    return [(step, cm) for step, cm in found if cm is not None]


def probe_summary(probe: Probe | None) -> ProbeSummary | None:
    """What the page shows of the depth probe."""
    if probe is None:
        return None
    return ProbeSummary(
        rows=probe.rows,
        versus=compared_with(probe),
        train_frames=probe.train_frames,
        test_frames=probe.test_frames,
        test_episodes=probe.test_episodes,
    )


def compared_with(probe: Probe) -> list[str]:
    """The rows that other rows are compared with."""
    return list(dict.fromkeys(other for row in probe.rows for other in row.differences or {}))


# ---- comparisons -------------------------------------------------------------------------------------------


def compare(arms: Mapping[str, ArmResults], a: str, b: str) -> Comparison:
    """Two arms at the last step at which both were evaluated; ``problem`` says why if there is no test."""
    found = Comparison(a=a, b=b, **speed(arms[a], arms[b]))
    by_step = [{e.step: e for e in arms[name].evaluations if e.episodes} for name in (a, b)]
    found.step = max(by_step[0].keys() & by_step[1].keys(), default=None)
    if found.step is None:
        found.problem = "there is no step at which both were evaluated"
        return found
    episodes = [sorted(of[found.step].episodes, key=_episode) for of in by_step]
    found.success_a, found.success_b = success(episodes[0]), success(episodes[1])
    try:
        paired = mcnemar(
            *([e.success for e in of] for of in episodes),
            a_episodes=[_episode(e) for e in episodes[0]],
            b_episodes=[_episode(e) for e in episodes[1]],
        )
    except StatsError as error:
        found.problem = str(error)
        return found
    tested = asdict(paired) | {"difference_points": 100 * paired.difference}
    return found.model_copy(update=tested)


def speed(arm_a: ArmResults, arm_b: ArmResults) -> dict[str, Any]:
    """Held-out errors at the last common step, and steps to the baseline's last one; None if unknown."""
    curves = [dict(_points(arm.evaluations, "heldout_error")) for arm in (arm_a, arm_b)]
    common = max(curves[0].keys() & curves[1].keys(), default=None)
    errors = None if common is None else Errors(step=common, a=curves[0][common], b=curves[1][common])
    if not all(curves):
        return {"heldout": errors}
    a, b = (Curve(list(of), list(of.values())) for of in curves)
    return {"reach": steps_to_target(a, b), "heldout": errors, "first_step": min(curves[0])}


# ---- small things ------------------------------------------------------------------------------------------


def _points(rows: Sequence[Any], name: str) -> list[tuple[int, float]]:
    values = [(row.step, _finite(getattr(row, name))) for row in rows]
    return [(step, value) for step, value in values if value is not None]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and isfinite(value)]


def _mean(values: Iterable[float | None], unit: float = 1) -> float | None:
    known = _known(values)
    return unit * fmean(known) if known else None


def _median(values: Iterable[float | None], unit: float = 1) -> float | None:
    known = _known(values)
    return unit * median(known) if known else None


def _episode(episode: Episode) -> tuple[str, int]:
    return episode.task, episode.seed
