"""Dry run of a comparison: its runs, cost and statistical power, measured on every arm's first steps."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spatial_forcing.compare.command import FEWER, device_of
from spatial_forcing.compare.features import dataset_of, stored_features
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.gather import run_results
from spatial_forcing.compare.launch import Launch, gpu_count, launch, prepare
from spatial_forcing.compare.plan import Comparison, folder_of
from spatial_forcing.compare.preflight import check_arms, small_version, what_differs
from spatial_forcing.console import duration, stages
from spatial_forcing.evaluation.guards.look import tell
from spatial_forcing.files import check_space, size_text
from spatial_forcing.power import ALPHA, detectable_difference, detectable_mean_difference

# Steps that are timed; the first ones load and compile.
TIMED, WARM = 6, 2
FRAMES = 64


@dataclass(frozen=True)
class Cost:
    """Cost of an arm's runs, measured on its first steps.

    Attributes:
        step: seconds of one, waiting for data included.
        heldout: seconds per held-out frame.
        rollout: seconds of one rollout per task; 0 without an environment.
        checkpoint: bytes.
        start: seconds of a run beside all that: imports, the policy, its first steps.
    """

    step: float
    heldout: float
    rollout: float
    checkpoint: int
    start: float = 0.0

    def of_run(self, steps: int, evaluations: int, frames: int, episodes: int) -> float:
        """Seconds of a run."""
        return (
            self.start + steps * self.step + evaluations * (frames * self.heldout + episodes * self.rollout)
        )


def dry_run(comparison: Comparison, wanted: Path, how: Launch, console: Any, *, anyway: bool = False) -> None:
    """Prints the runs, cost and statistical power of a comparison; keeps nothing.

    Args:
        comparison: the whole.
        wanted: folder that it would have.
        how: see ``compare.launch``.
        console: for what is printed.
        anyway: whether to go on where a guard finds something wrong.

    Raises:
        CompareError: an arm would not train, or looks wrong; or the disk has no room for all of it.
        EvalError: the environment does not fit the data, unless ``anyway``.
    """
    with tempfile.TemporaryDirectory() as folder, stages(console) as bars:
        device, out = device_of(comparison), Path(folder)
        small = small_version(comparison, steps=TIMED, frames=FRAMES)
        episodes = comparison.measures.episodes
        looked = check_arms(small, out / "check", bars, device, episodes=episodes, patience=how.patience)
        if looked.guarded is not None:
            tell([looked.guarded], console, anyway=anyway, undone="trained")
        start = time.perf_counter()
        features = stored_features(small, out, bars, device)
        storing = time.perf_counter() - start
        bar = bars.add_task("first steps of every arm", total=len(small.arms))
        alone = replace(how, workers=1, cluster=None)
        start = time.perf_counter()
        launch(prepare(small, out, features), out, alone, lambda: None)
        took = time.perf_counter() - start
        bars.update(bar, completed=len(small.arms))
        costs = {run.arm.name: cost_of(small, run, out) for run in small.runs()}
        looked_at = min(small.measures.heldout_frames, frames_of(small, small.split.heldout))
        known = sum(one.of_run(TIMED, 1, looked_at, small.measures.episodes) for one in costs.values())
        start = max(0.0, took - known) / len(costs)
        costs = {name: replace(one, start=start) for name, one in costs.items()}
        frames = frames_of(small, small.split.train)
        stored = sum(path.stat().st_size for path in (out / "features").rglob("*") if path.is_file())
    workers = how.at_a_time(gpu_count())
    whole = frames_of(comparison, comparison.split.train) * sum(comparison.fractions)
    each = len(comparison.seeds) * len(comparison.fractions) * len(comparison.evaluated_steps)
    disk = round(stored * whole / frames + each * sum(one.checkpoint for one in costs.values()))
    for line in lines(comparison, costs, workers, storing * whole / frames, disk):
        console.print(line, highlight=False, markup=False)
    for name, messages in looked.odd.items():
        for message in messages:
            console.print(f"{name}: {message}", highlight=False, markup=False)
    check_space(wanted, disk, FEWER, CompareError)


def frames_of(comparison: Comparison, episodes: Sequence[int]) -> int:
    """Number of frames of some episodes."""
    meta = dataset_of(comparison).meta
    return sum(int(meta.episodes[episode]["length"]) for episode in episodes)


def cost_of(small: Comparison, run: Any, out: Path) -> Cost:
    """Cost of a finished run of the small version."""
    found = run_results(small, run, out)
    steps = [(row.update_s or 0.0) + (row.dataloading_s or 0.0) for row in found.curves if row.step > WARM]
    last = found.evaluations[-1]
    looked_at = min(small.measures.heldout_frames, frames_of(small, small.split.heldout))
    checkpoints = folder_of(out, run) / "train" / "checkpoints"
    return Cost(
        step=sum(steps) / len(steps),
        heldout=(last.heldout_seconds or 0.0) / looked_at,
        rollout=(last.seconds or 0.0) / small.measures.episodes,
        checkpoint=sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()),
    )


def lines(
    comparison: Comparison, costs: dict[str, Cost], workers: int, storing: float, disk: int
) -> list[str]:
    """Output lines of a dry run.

    Args:
        comparison: the whole.
        costs: by arm.
        workers: runs at a time.
        storing: seconds that the teachers' features take.
        disk: bytes of all of it.
    """
    measures = comparison.measures
    evaluations = {run.arm.name: len(comparison.steps_of(run)) for run in comparison.runs()}
    each = len(comparison.seeds) * len(comparison.fractions)
    looked_at = min(measures.heldout_frames, frames_of(comparison, comparison.split.heldout))
    seconds = {
        name: one.of_run(comparison.steps, evaluations[name], looked_at, measures.episodes)
        for name, one in costs.items()
    }
    said = [
        f"{len(comparison.runs())} runs: arms {len(comparison.arms)} x seeds {len(comparison.seeds)} x "
        f"fractions {len(comparison.fractions)}, {comparison.steps} steps each; trained on "
        f"{len(comparison.split.train)} episodes, {len(comparison.split.heldout)} held out."
    ]
    for name, differs in what_differs(comparison):
        said.append(
            f"  {name:<12} {costs[name].step:.3g} s per step, {duration(seconds[name])} a run: {differs}"
        )
    total = each * sum(seconds.values()) / workers + storing
    said.append(
        f"About {duration(total)} with {workers} at a time, {duration(storing)} of it for the teachers' "
        f"features; {size_text(disk)} on disk."
    )
    return [*said, *what_it_can_show(comparison, rolled=any(one.rollout for one in costs.values()))]


def what_it_can_show(comparison: Comparison, *, rolled: bool) -> list[str]:
    """Lines with the smallest differences that these episodes and seeds detect with power 0.8."""
    seeds, episodes = len(comparison.seeds), comparison.measures.episodes
    tested = max(1, sum(arm.role == "arm" for arm in comparison.arms) - 1)  # against plain, and each control
    said = []
    if rolled:
        smallest = detectable_difference(episodes, seeds, alpha=ALPHA / tested)
        of = f"{episodes} paired episodes per task x {seeds} seed{'s' * (seeds > 1)}"
        test = f"McNemar's exact test at {ALPHA} / {tested} arm{'s' * (tested > 1)}"
        said.append(
            f"Success, {of}: too few to show any difference, however large ({test})."
            if smallest is None
            else f"Success, {of}: a difference of {100 * smallest:.0f} points or more would be found four "
            f"times in five at best ({test}, for policies that solve half of the episodes, if seeds and "
            "episodes vary no more than by chance; fewer points where they solve most or few)."
        )
    smallest = detectable_mean_difference(seeds, alpha=ALPHA / tested)
    said.append(
        "Held-out error: one seed says nothing about the spread."
        if smallest is None
        else f"Held-out error, {seeds} seeds: a difference of {smallest:.1f} times its deviation over seeds."
    )
    return said
