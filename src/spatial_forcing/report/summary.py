"""Every number the report shows, computed from the results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from statistics import fmean, median
from typing import Any

from spatial_forcing.report.findings import headline, notes
from spatial_forcing.stats import Curve, StatsError, mcnemar, steps_to_target, wilson

CM = 100


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """Computes the report's numbers from checked results; plain JSON data without NaN.

    Several seeds of an arm would each be summarised like this and then be pooled with the bootstrap of
    ``spatial_forcing.stats``.
    """
    arms = {name: summarise_arm(arm) for name, arm in results["arms"].items()}
    comparisons = [compare(results["arms"], a, b) for a, b in pairs_to_compare(results)]
    summary = {key: results[key] for key in ("title", "created", "command", "versions", "hardware")}
    summary |= {key: results[key] for key in ("settings", "teacher", "timings", "tasks")}
    summary |= {"commit": results.get("commit"), "arms": arms, "comparisons": comparisons}
    summary |= {"probe": probe_rows(results.get("probe")), "plots": series(results["arms"])}
    summary["headline"] = headline(summary)
    summary["notes"] = notes(summary)
    return without_nan(summary)


# ---- arms --------------------------------------------------------------------------------------------------


def summarise_arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one run at its last evaluation."""
    last = arm["evaluations"][-1] if arm["evaluations"] else {}
    episodes = last.get("episodes", [])
    trained = max([row["step"] for row in arm["curves"]] + [last.get("step", 0)])
    return {
        **{key: arm[key] for key in ("label", "role", "seed", "steps", "parameters")},
        "trained_steps": trained,
        "evaluated_step": last.get("step"),
        "finished": last.get("step", 0) >= arm["steps"],
        "success": success(episodes),
        "tasks": {task: success([e for e in episodes if e["task"] == task]) for task in _tasks(episodes)},
        "final_distance_cm": distance_cm(episodes, "final"),
        "closest_distance_cm": distance_cm(episodes, "closest"),
        "heldout_error": last.get("heldout_error"),
        "action_loss": last_tenth(arm, "action_loss"),
        "update_ms": _median([row.get("update_s") for row in arm["curves"]], 1000),
        "dataloading_ms": _median([row.get("dataloading_s") for row in arm["curves"]], 1000),
    }


def success(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Success rate with Wilson's interval; None without episodes."""
    return asdict(wilson(sum(e["success"] for e in episodes), len(episodes))) if episodes else None


def distance_cm(episodes: Sequence[Mapping[str, Any]], when: str) -> float | None:
    """Mean distance to the goal in centimetres, "final" or "closest"; None if none was measured."""
    return _mean([e.get(f"{when}_distance") for e in episodes], CM)


def last_tenth(arm: Mapping[str, Any], name: str) -> float | None:
    """Mean of what was logged in the last tenth of the steps so far: one batch alone is noise."""
    rows = [(row["step"], row.get(name)) for row in arm["curves"]]
    return _mean([value for step, value in rows if step > 0.9 * rows[-1][0]])


def series(arms: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """What the plots draw: for each quantity and arm, the points that exist."""
    found: dict[str, dict[str, list]] = {"success": {}, "heldout_error": {}, "closest_distance_cm": {}}
    for name, arm in arms.items():
        rates = [(e["step"], success(e["episodes"])) for e in arm["evaluations"]]
        found["success"][name] = [{"step": step, **rate} for step, rate in rates if rate]
        found["heldout_error"][name] = _points(arm["evaluations"], "heldout_error")
        distances = [(e["step"], distance_cm(e["episodes"], "closest")) for e in arm["evaluations"]]
        found["closest_distance_cm"][name] = [(step, cm) for step, cm in distances if cm is not None]
        for quantity in ("action_loss", "cosine", "gradient_ratio"):
            found.setdefault(quantity, {})[name] = _points(arm["curves"], quantity)
    return found


def probe_rows(probe: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows of the depth probe."""
    if probe is None:
        return None
    rows = [
        {key: row[key] for key in ("name", "absrel", "rmse_m", "delta1")}
        | {key: row.get(key) or {} for key in ("intervals", "differences")}
        for row in probe["rows"]
    ]
    return {
        "rows": rows,
        "versus": list(dict.fromkeys(other for row in rows for other in row["differences"])),
        **{key: probe[key] for key in ("train_frames", "test_frames")},
        "test_episodes": probe.get("test_episodes"),
    }


# ---- comparisons -------------------------------------------------------------------------------------------


def pairs_to_compare(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs asked for; else "baseline" (or the first arm) and every control with every other arm."""
    if results.get("comparisons"):
        return [(a, b) for a, b in results["comparisons"]]
    names = [name for name, arm in results["arms"].items() if arm["role"] == "arm"]
    first = "baseline" if "baseline" in names else next(iter(names), None)
    controls = [name for name, arm in results["arms"].items() if arm["role"] == "control"]
    return [(a, b) for b in names if b != first for a in [first, *controls] if a]


def compare(arms: Mapping[str, Any], a: str, b: str) -> dict[str, Any]:
    """Two arms at the last step at which both were evaluated; ``problem`` says why if there is no test."""
    by_step = [{e["step"]: e for e in arms[name]["evaluations"] if e["episodes"]} for name in (a, b)]
    common = sorted(by_step[0].keys() & by_step[1].keys())
    found: dict[str, Any] = {"a": a, "b": b, "step": common[-1] if common else None, "problem": None}
    if not common:
        found["problem"] = "there is no step at which both were evaluated"
    else:
        episodes = [sorted(of[common[-1]]["episodes"], key=_episode) for of in by_step]
        found["success_a"], found["success_b"] = success(episodes[0]), success(episodes[1])
        try:
            paired = mcnemar(
                *([e["success"] for e in of] for of in episodes),
                a_episodes=[_episode(e) for e in episodes[0]],
                b_episodes=[_episode(e) for e in episodes[1]],
            )
            found |= asdict(paired) | {"difference_points": 100 * paired.difference}
        except StatsError as error:
            found["problem"] = str(error)
    return found | speed(arms[a], arms[b])


def speed(arm_a: Mapping[str, Any], arm_b: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out errors at the last common step, and steps to the baseline's last one; None if unknown."""
    points = [dict(_points(arm["evaluations"], "heldout_error")) for arm in (arm_a, arm_b)]
    common = max(points[0].keys() & points[1].keys(), default=None)
    errors = None if common is None else {"step": common, "a": points[0][common], "b": points[1][common]}
    if not all(points):
        return {"reach": None, "heldout": errors, "first_step": None}
    a, b = (Curve(list(of), list(of.values())) for of in points)
    return {"reach": asdict(steps_to_target(a, b)), "heldout": errors, "first_step": min(points[0])}


# ---- small things ------------------------------------------------------------------------------------------


def without_nan(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    values = [(row["step"], row.get(name)) for row in rows]
    return [(step, value) for step, value in values if value is not None and isfinite(value)]


def _mean(values: Sequence[float | None], unit: float = 1) -> float | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return unit * fmean(known) if known else None


def _median(values: Sequence[float | None], unit: float = 1) -> float | None:
    known = [value for value in values if value is not None and isfinite(value)]
    return unit * median(known) if known else None


def _tasks(episodes: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(e["task"] for e in episodes))


def _episode(episode: Mapping[str, Any]) -> tuple[str, int]:
    return episode["task"], episode["seed"]
