"""What a report is made from, and a check that says which key is wrong."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from spatial_forcing.errors import SpatialForcingError


class ReportError(SpatialForcingError, ValueError):
    """The results lack something, or hold something that a report cannot show."""


class Maybe(NamedTuple):
    """The key may be missing, or its value None."""

    kind: Any


class Each(NamedTuple):
    """A mapping of any names to values of one kind."""

    kind: Any


NUMBER = (int, float)
EPISODE = {
    "task": str,
    "seed": int,
    "success": bool,
    "final_distance": Maybe(NUMBER),
    "closest_distance": Maybe(NUMBER),
    "steps": Maybe(int),
}
EVALUATION = {"step": int, "heldout_error": Maybe(NUMBER), "seconds": Maybe(NUMBER), "episodes": [EPISODE]}
CURVE_NAMES = (
    "action_loss",
    "align_loss",
    "cosine",
    "gradient_ratio",
    "valid_fraction",
    "update_s",
    "dataloading_s",
)
ARM = {
    "label": str,
    "role": str,
    "seed": int,
    "steps": int,
    "parameters": int,
    "curves": [{"step": int} | dict.fromkeys(CURVE_NAMES, Maybe(NUMBER))],
    "evaluations": [EVALUATION],
    "videos": Maybe([str]),
}
PROBE = {
    "rows": [
        {
            "name": str,
            "absrel": NUMBER,
            "rmse_m": NUMBER,
            "delta1": NUMBER,
            "intervals": Maybe(Each([NUMBER])),
            "differences": Maybe(Each({"absrel": NUMBER, "low": Maybe(NUMBER), "high": Maybe(NUMBER)})),
        }
    ],
    "picture": Maybe(str),
    "train_frames": int,
    "test_frames": int,
    "test_episodes": Maybe(int),
}
RESULTS = {
    "title": str,
    "created": str,
    "command": str,
    "commit": Maybe(str),
    "versions": Each(str),
    "hardware": Each(object),
    "settings": Each(object),
    "teacher": {"name": str, "fingerprint": str, "licence": str, "note": Maybe(str)},
    "timings": Each(NUMBER),
    "tasks": [str],
    "arms": Each(ARM),
    "probe": Maybe(PROBE),
    "samples": Maybe([{"path": str, "caption": str}]),
    "comparisons": Maybe([[str]]),
}
ROLES = ("arm", "control", "reference")


def check_results(results: Mapping[str, Any]) -> None:
    """Raises :class:`ReportError` naming the first thing that is missing or wrong.

    More keys than needed are fine. An arm without curves or evaluations has not finished, and passes.
    """
    _check(results, RESULTS, "results")
    if not results["arms"]:
        raise ReportError("results['arms'] is empty: there is nothing to report.")
    for name, arm in results["arms"].items():
        where = f"results['arms'][{name!r}]"
        if arm["role"] not in ROLES:
            raise ReportError(f"{where}['role'] is {arm['role']!r}; it must be one of {', '.join(ROLES)}.")
        for key in ("curves", "evaluations"):
            steps = [row["step"] for row in arm[key]]
            if steps != sorted(set(steps)):
                raise ReportError(f"The steps of {where}[{key!r}] must increase, got {steps}.")
        for evaluation in arm["evaluations"]:
            episodes = [(e["task"], e["seed"]) for e in evaluation["episodes"]]
            if len(set(episodes)) < len(episodes):
                raise ReportError(
                    f"{where}, evaluation at step {evaluation['step']}: an episode appears twice."
                )
    for pair in results.get("comparisons") or []:
        if len(pair) != 2 or not set(pair) <= set(results["arms"]):
            names = ", ".join(results["arms"])
            raise ReportError(f"results['comparisons'] must name pairs of arms, got {pair}. Arms: {names}.")


def _check(value: Any, kind: Any, where: str) -> None:
    if isinstance(kind, Maybe):
        if value is not None:
            _check(value, kind.kind, where)
    elif isinstance(kind, Each):
        _check_type(value, Mapping, where)
        for name, item in value.items():
            _check(item, kind.kind, f"{where}[{name!r}]")
    elif isinstance(kind, dict):
        _check_type(value, Mapping, where)
        for key, of in kind.items():
            if key not in value and not isinstance(of, Maybe):
                raise ReportError(_missing(key, value, where))
            _check(value.get(key), of, f"{where}[{key!r}]")
    elif isinstance(kind, list):
        _check_type(value, Sequence, where)
        for i, item in enumerate(value):
            _check(item, kind[0], f"{where}[{i}]")
    else:
        _check_type(value, kind, where)


def _check_type(value: Any, kind: Any, where: str) -> None:
    right = isinstance(value, kind) and not (isinstance(value, bool) and kind in (int, NUMBER))
    if not right or (kind is Sequence and isinstance(value, str)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ReportError(f"{where} must be {names}, got {type(value).__name__}: {str(value)[:80]!r}.")


def _missing(key: str, found: Mapping[str, Any], where: str) -> str:
    near = get_close_matches(key, [str(k) for k in found], n=1)
    hint = f" Did you mean {near[0]!r} there?" if near else ""
    return f"{where} has no {key!r}.{hint} It has: {', '.join(map(str, found)) or 'nothing'}."
