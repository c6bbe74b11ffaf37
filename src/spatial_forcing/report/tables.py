"""CSV tables of the report, with all digits, for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from spatial_forcing.report.records import Comparison, Spread, Summary, ToTarget
from spatial_forcing.results import Results

Row = dict[str, Any]


def csv_tables(summary: Summary, results: Results) -> dict[str, str]:
    """Every table that has rows, as CSV text by name."""
    tables = {
        "arms": arms(summary),
        "tasks": tasks(summary),
        "comparisons": [comparison(c) for c in summary.comparisons],
        "against_plain": [comparison(c) for c in summary.against_plain],
        "cost": cost(summary),
        "runs": [run.plain() for run in summary.runs],
        "evaluations": evaluations(results),
        "episodes": episodes(results),
        "curves": curves(results),
        "probe": probe(summary),
        "probe_sites": probe_sites(summary),
    }
    return {name: as_csv(rows) for name, rows in tables.items() if rows}


def as_csv(rows: Sequence[Row]) -> str:
    """CSV text with the columns of all rows in the order in which they first come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def arms(summary: Summary) -> list[Row]:
    """Table of the arms at their last evaluation."""
    found = []
    for name, arm in summary.arms.items():
        row = {"arm": name, "role": arm.role, "label": arm.label, "differs": " ".join(arm.differs)}
        row |= {"seeds": _listed(arm.seeds), "step": arm.evaluated_step, "steps": arm.steps}
        if arm.success:
            row |= {"successes": arm.success.successes, "episodes": arm.success.episodes}
            row |= {"success_low": arm.success.low, "success_high": arm.success.high}
        for phase, rate in arm.phases.items():
            row |= {f"{phase}_episodes": rate.successes, f"{phase}_low": rate.low, f"{phase}_high": rate.high}
        found.append(
            row
            | {"final_distance_cm": arm.final_distance_cm, "closest_distance_cm": arm.closest_distance_cm}
            | {"heldout_error": arm.heldout_error, "heldout_loss": arm.heldout_loss}
            | {"constant_error": arm.constant_error}
            | {"action_loss": arm.action_loss}
        )
    return found


def tasks(summary: Summary) -> list[Row]:
    """Table of each arm's success by task."""
    return [
        {"arm": name, "task": task, "successes": rate.successes, "episodes": rate.episodes}
        | {"success_low": rate.low, "success_high": rate.high}
        for name, arm in summary.arms.items()
        for task, rate in arm.tasks.items()
        if rate
    ]


def comparison(c: Comparison) -> Row:
    """Row of one pair of arms."""
    row: Row = {"arm": c.b, "against": c.a, "step": c.step, "seeds": _listed(c.seeds), "problem": c.problem}
    row |= {"both": c.both, "only_arm": c.only_b, "only_against": c.only_a, "neither": c.neither}
    row |= {"mcnemar_p": c.p_value, "mcnemar_p_holm": c.p_holm}
    row |= _spread("difference_points", c.difference) | _spread("ratio", c.ratio)
    row |= {"detectable_points": c.detectable}
    if c.errors:
        row |= {"error_step": c.errors.step, "error": c.errors.b, "error_against": c.errors.a}
        row |= _spread("error_difference", c.errors.difference)
        row |= {"error_t_test_p": c.errors.p_value, "error_t_test_p_holm": c.errors.p_holm}
        row |= {"error_detectable": c.errors.detectable}
    return (
        row
        | _to_target("steps_to_target", c.steps_to_target)
        | _to_target("data_to_target", c.data_to_target)
    )


def cost(summary: Summary) -> list[Row]:
    """Table of each arm's training cost."""
    found = []
    for name, arm in summary.arms.items():
        row = {"arm": name, "parameters": arm.parameters, "update_ms": arm.cost.update_ms}
        row |= {"dataloading_ms": arm.cost.dataloading_ms, "peak_memory_mb": arm.cost.peak_memory_mb}
        for ratio in ("update_ratio", "dataloading_ratio", "peak_memory_ratio"):
            row |= _spread(ratio, getattr(arm.cost, ratio))
        found.append(row)
    return found


def evaluations(results: Results) -> list[Row]:
    """Table of the evaluations: every checkpoint of every run."""
    return [
        {"arm": run.arm, "seed": run.seed, "fraction": run.fraction, "step": e.step}
        | {"heldout_error": e.heldout_error, "heldout_loss": e.heldout_loss}
        | {"successes": sum(one.success for one in e.episodes), "episodes": len(e.episodes)}
        for run in results.runs
        for e in run.evaluations
    ]


def episodes(results: Results) -> list[Row]:
    """Table of all rollouts, with the numbers that the environment gave."""
    return [
        {"arm": run.arm, "training_seed": run.seed, "fraction": run.fraction, "step": e.step}
        | {"episode_seed" if key == "seed" else key: value for key, value in row.items()}
        for run in results.runs
        for e in run.evaluations
        for one in e.episodes
        for row in [one.plain(exclude={"phases"}) | (one.phases or {})]
    ]


def curves(results: Results) -> list[Row]:
    """Table of the training curves: every logged row of every run."""
    return [
        {"arm": run.arm, "seed": run.seed, "fraction": run.fraction} | row.plain()
        for run in results.runs
        for row in run.curves
    ]


def probe(summary: Summary) -> list[Row]:
    """Table of the depth probe, one source of tokens per row."""
    found = []
    for row in summary.probe.rows if summary.probe else []:
        one: Row = {"tokens_of": row.name}
        for metric in ("absrel", "rmse_m", "delta1"):
            low, high = (row.intervals or {}).get(metric, (None, None))
            one |= {metric: getattr(row, metric), f"{metric}_low": low, f"{metric}_high": high}
        for other, by in (row.differences or {}).items():
            one[f"absrel_less_{other}"] = by.absrel
            one |= {f"absrel_less_{other}_low": by.low, f"absrel_less_{other}_high": by.high}
        found.append(one)
    return found


def probe_sites(summary: Summary) -> list[Row]:
    """Table of AbsRel of every policy at every site."""
    section = summary.plots.probe_sites
    return [
        {"tokens_of": name, "site": f"{stack}.{point.layer}"}
        | {"absrel": point.absrel, "absrel_low": point.low, "absrel_high": point.high}
        for stack, by_name in (section.stacks if section else {}).items()
        for name, points in by_name.items()
        for point in points
    ]


def _spread(name: str, found: Spread | None) -> Row:
    value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _to_target(name: str, found: ToTarget | None) -> Row:
    if found is None:
        return {}
    row: Row = {f"{name}_unit": found.unit, f"{name}_target": found.target, f"{name}_ratio": found.ratio}
    by_seed = {"arm": found.b, "against": found.a}
    return row | {f"{name}_{who}": _listed(of.values()) for who, of in by_seed.items()}


def _listed(values: Any) -> str:
    return " / ".join(map(str, values))
