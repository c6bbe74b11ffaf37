"""The command ``spatial-forcing compare``, stage by stage. Its options are in ``compare.options``."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spatial_forcing.compare.arm import PLAIN, Arm
from spatial_forcing.compare.options import CompareError
from spatial_forcing.errors import SpatialForcingError, check_can_report

TITLE = "Does it help?"
TIMINGS = "timings.json"
# Bytes of checkpoints that are told before they are written.
MUCH = 5e9
AGAINST_A_MODEL = "against a model's: --probe pseudo:<model>, also later, with the same command"
FEWER = "The checkpoints of all runs take that: choose a folder on another disk, or fewer --evaluations."


def make(
    comparison: Any,
    out: Path,
    how: Any,
    console: Any,
    *,
    title: str = TITLE,
    anyway: bool = False,
    claimed: bool = False,
    spent: dict[str, float] | None = None,
) -> Path:
    """Runs a comparison in its folder, stage by stage, and returns the path of its report.

    Args:
        comparison: see ``compare.plan``.
        out: its folder.
        how: see ``compare.launch``.
        console: for what is printed.
        title: of the report.
        anyway: whether to go on where a guard finds something wrong with the environment.
        claimed: whether the folder is the caller's already, and may hold more than the comparison.
        spent: seconds of the caller's own stages.

    Raises:
        SpatialForcingError: it cannot be made, or a run failed; what is finished is kept.
    """
    check_can_report()
    from spatial_forcing.compare.folder import WARNINGS, check_taken, take_folder
    from spatial_forcing.compare.gather import gather
    from spatial_forcing.compare.preflight import what_differs
    from spatial_forcing.compare.probing import depth_wanted
    from spatial_forcing.console import stages
    from spatial_forcing.files import write_json
    from spatial_forcing.provenance import command_line, made_with
    from spatial_forcing.report import write_report

    made = made_with(command_line())
    if not claimed:
        check_taken(out, comparison)
    if depth_wanted(comparison) is None and comparison.measures.probe == "auto":
        console.print(
            f"No depth is recorded in the data, so that none is probed; {AGAINST_A_MODEL}.", highlight=False
        )
    for name, said in what_differs(comparison):
        console.print(f"[bold]{name:<12}[/]", end=" ")
        console.print(said, highlight=False, markup=False)
    device = device_of(comparison)
    with timings_in(out, spent or {}) as timings:
        with stages(console) as bars:
            warnings = look_first(comparison, out, how, bars, device, console, timings, anyway=anyway)
            # Not before: what was wrong at first is then tried again in the same folder.
            take_folder(out, comparison, only=not claimed)
            if warnings is not None:
                write_json(out / WARNINGS, {"warnings": warnings})
            run_all(comparison, out, how, bars, device, timings)
            problem = probe_last(comparison, out, bars, device, timings)
        if problem is not None:
            console.print("[yellow]The depth probe was left out:[/]", end=" ")
            console.print(problem, highlight=False, markup=False)
    report = write_report(gather(comparison, out, made, timings, title), out)
    console.print(f"Report: [bold]{report}[/]")
    return report


def look_first(
    comparison: Any,
    out: Path,
    how: Any,
    bars: Any,
    device: str,
    console: Any,
    timings: dict[str, float],
    *,
    anyway: bool,
) -> list[str] | None:
    """Preflight: takes every arm to its first step and prints warnings, unless a run is already past it.

    Returns:
        The warnings; None if a run is past it.

    Raises:
        CompareError: an arm would not train as it should, or the disk has no room for the checkpoints.
        EvalError: the environment does not fit the data, unless ``anyway``.
    """
    from spatial_forcing.compare.plan import folder_of
    from spatial_forcing.compare.preflight import check_arms, small_version
    from spatial_forcing.compare.run import is_complete
    from spatial_forcing.console import timed
    from spatial_forcing.evaluation.guards.look import tell
    from spatial_forcing.files import check_space, size_text

    first = comparison.evaluated_steps[:1]
    if any(is_complete(folder_of(out, run), first) for run in comparison.runs()):
        check_space(out, bytes_to_come(comparison, out), FEWER, CompareError)
        return None
    with timed(timings, "looking at every arm"), tempfile.TemporaryDirectory() as folder:
        small = small_version(comparison, steps=1, frames=64)
        episodes = comparison.measures.episodes
        looked = check_arms(small, Path(folder), bars, device, episodes=episodes, patience=how.patience)
    each = len(comparison.evaluated_steps) * len(comparison.seeds) * len(comparison.fractions)
    needed = each * sum(looked.checkpoint.values())
    check_space(out, needed, FEWER, CompareError)
    if needed > MUCH:
        console.print(f"The checkpoints of all runs will take {size_text(needed)}.", highlight=False)
    if looked.guarded is not None:
        tell([looked.guarded], console, anyway=anyway, undone="trained")
    for name, messages in looked.odd.items():
        for message in messages:
            console.print(f"[yellow]{name}:[/] ", end="")
            console.print(message, highlight=False, markup=False)
    return looked.warnings


def bytes_to_come(comparison: Any, out: Path) -> int:
    """Bytes of the checkpoints of runs that have not begun, by those of the runs of their arms that have."""
    from spatial_forcing.compare.plan import training_of

    sizes: dict[str, int] = {}
    to_come = []
    for run in comparison.runs():
        saved = training_of(comparison, out, run) / "checkpoints"
        if not saved.is_dir():
            to_come.append(run.arm.name)
            continue
        size = sum(
            path.stat().st_size for path in saved.rglob("*") if not path.is_symlink() and path.is_file()
        )
        sizes[run.arm.name] = max(size, sizes.get(run.arm.name, 0))
    return sum(sizes.get(name, 0) for name in to_come)


def run_all(comparison: Any, out: Path, how: Any, bars: Any, device: str, timings: dict[str, float]) -> None:
    """Stores features, trains and evaluates; finished work is not repeated, nor that of another folder."""
    from spatial_forcing.compare.features import stored_features
    from spatial_forcing.compare.launch import launch, prepare
    from spatial_forcing.compare.status import work_done
    from spatial_forcing.console import timed

    features = {}
    if comparison.policies is None:
        with timed(timings, "teacher features"):
            features = stored_features(comparison, out, bars, device)
    with timed(timings, "training and evaluation"):
        rows = {arm.name: bars.add_task(arm.name, total=None, percent=True) for arm in comparison.arms}

        def watch() -> None:
            for name, (done, total) in work_done(comparison, out).items():
                bars.update(rows[name], completed=done, total=total)

        launch(prepare(comparison, out, features), out, how, watch)
        watch()


def probe_last(comparison: Any, out: Path, bars: Any, device: str, timings: dict[str, float]) -> str | None:
    """Probes the trained policies; returns why if that fails, so that the rest is still reported."""
    from spatial_forcing.compare.probing import probe_arms
    from spatial_forcing.console import timed

    try:
        with timed(timings, "depth probe"):
            probe_arms(comparison, out, bars, device)
    except SpatialForcingError as error:
        return str(error)
    except Exception as error:  # of many kinds: policies run their own code, on a device that may be full
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def timings_in(out: Path, spent: dict[str, float]) -> Iterator[dict[str, float]]:
    """Seconds by stage, interrupted attempts included, saved in the folder once it is claimed."""
    from spatial_forcing.compare.folder import NOTE
    from spatial_forcing.files import read_json, write_json

    path = out / TIMINGS
    before = read_json(path, "Remove it; it only says how long stages took.") if path.is_file() else {}
    found = {stage: round(before.get(stage, 0.0) + spent.get(stage, 0.0), 1) for stage in {**spent, **before}}
    try:
        yield found
    finally:
        if (out / NOTE).is_file():
            write_json(path, found)


def device_of(comparison: Any) -> str:
    """Device on which the policy trains and the teacher runs."""
    from spatial_forcing.compare.flags import arm_flags, policy_of

    return policy_of(arm_flags(comparison.flags, Arm(PLAIN))).device or "cpu"
