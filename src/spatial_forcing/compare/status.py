"""Progress of a comparison, from its files: a row per run, and the time left."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from spatial_forcing.compare.plan import Comparison, folder_of, training_of
from spatial_forcing.console import duration, narrow_table

if TYPE_CHECKING:
    from spatial_forcing.run_results import Evaluation

# Steps that tell how long one takes now.
RECENT = 5
# Bytes at the end of a log that hold its last row.
TAIL = 2**14


@dataclass(frozen=True)
class Progress:
    """Training and evaluation progress of a run.

    Attributes:
        name: of the run.
        step, steps: trained, and to train.
        evaluations: of checkpoints, finished.
        to_evaluate: how many checkpoints there will be.
        seconds_per_step: of late, waiting for data included; None before anything was logged.
        startup_seconds: of training apart from its steps: start-up and checkpoints; None before it ended.
        begun: whether it has a log.
        goes_on: whether a process of it runs now.
        failed: whether none does and its log ends with an error of ours.
    """

    name: str
    step: int
    steps: int
    evaluations: "list[Evaluation]"
    to_evaluate: int
    seconds_per_step: float | None
    startup_seconds: float | None
    begun: bool
    goes_on: bool
    failed: bool

    @property
    def state(self) -> str:
        """Finished, failed, waiting, stopped at step N, begun, step N of M or evaluating."""
        if len(self.evaluations) >= self.to_evaluate:
            return "finished"
        if self.failed:
            return "failed"
        if not self.begun:
            return "waiting"
        if not self.goes_on:
            return f"stopped at step {self.step}"
        if self.step >= self.steps:
            return "evaluating"
        return f"step {self.step} of {self.steps}" if self.step else "begun"


def progress_of(comparison: Comparison, out: Path) -> list[Progress]:
    """Progress of every run, from its files."""
    from spatial_forcing.compare.gather import evaluations_of
    from spatial_forcing.compare.launch import LOG
    from spatial_forcing.compare.run import COST
    from spatial_forcing.files import read_json
    from spatial_forcing.locks import is_held
    from spatial_forcing.train import read_metrics

    found = []
    for run in comparison.runs():
        folder = folder_of(out, run)
        training = training_of(comparison, out, run)
        rows = [row for row in read_metrics(training) if "update_s" in row]
        seconds = [row["update_s"] + row.get("dataloading_s", 0.0) for row in rows[-RECENT:]]
        pace, log = median(seconds) if seconds else None, folder / LOG
        cost = read_json(folder / COST) if (folder / COST).is_file() else {}
        startup = None
        if pace is not None and "seconds" in cost:
            # Of a resumed run only the last attempt is timed.
            startup = max(0.0, cost["seconds"] - pace * comparison.steps)
        begun, goes_on = log.is_file(), is_held(folder)
        ended = begun and "\nspatial-forcing: " in f"\n{log.read_text(errors='replace')[-2000:]}"
        found.append(
            Progress(
                name=run.name,
                step=rows[-1]["step"] if rows else 0,
                steps=comparison.steps,
                evaluations=evaluations_of(folder),
                to_evaluate=len(comparison.steps_of(run)),
                seconds_per_step=pace,
                startup_seconds=startup,
                begun=begun,
                goes_on=goes_on,
                failed=ended and not goes_on,
            )
        )
    return found


def work_done(comparison: Comparison, out: Path) -> dict[str, tuple[int, int]]:
    """By arm, work done and in all, in training steps; an evaluation counts as a quarter of those before it.

    Of policies that are trained already it is the evaluations alone, each of the steps before it. It is asked
    every second, so it reads no more than the end of each log.
    """
    trains = comparison.policies is None
    steps, share = (comparison.steps, comparison.save_every // 4) if trains else (0, comparison.save_every)
    found = {arm.name: (0, 0) for arm in comparison.arms}
    for run in comparison.runs():
        folder = folder_of(out, run)
        evaluated = len(list((folder / "eval").glob("[0-9]*.json")))
        done, total = found[run.arm.name]
        done += min(last_step(folder / "train"), steps) + share * evaluated
        found[run.arm.name] = done, total + steps + share * len(comparison.steps_of(run))
    return found


def last_step(run: Path) -> int:
    """The last step in the metrics of a training run; 0 before there is one."""
    from spatial_forcing.train import METRICS

    path = run / METRICS
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        # The last line may be half written while the run goes on.
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def seconds_left(found: Sequence[Progress], workers: int) -> float | None:
    """Estimated seconds until all runs are finished; None before any has logged a step.

    Start-up and evaluations are counted once a run has shown what they take.
    """
    paces = [one.seconds_per_step for one in found if one.seconds_per_step is not None]
    if not paces:
        return None
    evaluated = [(e.seconds or 0.0) + (e.heldout_seconds or 0.0) for one in found for e in one.evaluations]
    started = [one.startup_seconds for one in found if one.startup_seconds is not None]
    per_evaluation, per_start = (median(known) if known else 0.0 for known in (evaluated, started))
    total = sum(
        (one.steps - min(one.step, one.steps)) * (one.seconds_per_step or median(paces))
        + (one.to_evaluate - len(one.evaluations)) * per_evaluation
        + (0.0 if one.step else per_start)
        for one in found
    )
    return total / max(1, workers)


def is_over(found: Sequence[Progress]) -> bool:
    """Whether nothing more will happen: all runs are finished, or one failed, which ends the others, and none
    goes on."""
    if all(one.state == "finished" for one in found):
        return True
    return any(one.failed for one in found) and not any(one.goes_on for one in found)


def status_table(found: Sequence[Progress], workers: int) -> Any:
    """Table of the runs' progress for the console."""
    from rich.table import Column

    left = seconds_left(found, workers)
    done = sum(one.state == "finished" for one in found)
    title = f"{done} of {len(found)} runs finished"
    if done < len(found) and any(one.begun for one in found) and not any(one.goes_on for one in found):
        title += "; none goes on now (the command that began them continues)"
    elif done < len(found) and left is not None:
        title += f", about {duration(left)} left with {workers} at a time"
    # Six columns of words that do not wrap, in the 80 characters of a narrow terminal.
    names = ("run", "state", "s/step", "evaluated", "error", "success")
    columns = [Column(name, no_wrap=True) for name in names]
    table = narrow_table(*columns, title=title, title_justify="left")
    for one in found:
        last = one.evaluations[-1] if one.evaluations else None
        solved = [episode.success for episode in last.episodes] if last else []
        table.add_row(
            one.name,
            one.state,
            "" if one.seconds_per_step is None else f"{one.seconds_per_step:.3g}",
            f"{len(one.evaluations)} of {one.to_evaluate}",
            "" if last is None or last.heldout_error is None else f"{last.heldout_error:.3f}",
            f"{sum(solved)}/{len(solved)}" if solved else "",
        )
    return table
