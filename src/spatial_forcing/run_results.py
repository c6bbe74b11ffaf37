"""Result records of training runs: logged curves, evaluations of checkpoints, episodes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.json_record import Record

try:
    from pydantic import Field, field_validator, model_serializer
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error


class Episode(Record):
    """One rollout. Other numbers that an environment gives are kept under their names.

    Attributes:
        task, seed: which episode it was; policies are compared on equal ones.
        success: whether it was solved.
        final_distance, closest_distance: to the goal when it ended and at its best moment, metres.
        phases: of a task, in their order, and whether the episode came to them.
        steps: control steps.
        sum_reward, max_reward: over its steps.
    """

    task: str
    seed: int
    success: bool
    final_distance: float | None = None
    closest_distance: float | None = None
    phases: dict[str, bool] | None = None
    steps: int | None = None
    sum_reward: float | None = None
    max_reward: float | None = None

    @model_serializer(mode="wrap")
    def _what_was_measured(self, whole: Any) -> dict[str, Any]:
        return without_none(whole(self))


class Evaluation(Record):
    """Evaluation of a checkpoint: held-out error and rollouts.

    Attributes:
        step: training step of the checkpoint.
        heldout_error: mean absolute error of the sampled action chunk on held-out demonstrations, in standard
            deviations of each action dimension; with fixed noise.
        heldout_loss: the policy's own training loss on them, at fixed noise and time.
        constant_error: what the error would be of predicting the mean of these actions, whatever is seen.
        episodes: in the order of the seeds; none without an environment.
        videos: files of the first few episodes, relative to the folder of the run.
        seconds: wall time of the rollouts.
        heldout_seconds: of the held-out error and loss.
    """

    step: int
    heldout_error: float | None = None
    heldout_loss: float | None = None
    constant_error: float | None = None
    episodes: list[Episode]
    videos: list[str] = Field(default_factory=list)
    seconds: float | None = None
    heldout_seconds: float | None = None

    @field_validator("episodes")
    @classmethod
    def _once_each(cls, episodes: list[Episode]) -> list[Episode]:
        seen = set()
        for one in episodes:
            if (one.task, one.seed) in seen:
                raise ValueError(f"an episode appears twice: {one.task} with seed {one.seed}")
            seen.add((one.task, one.seed))
        return episodes

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.plain(), indent=1))


class CurveRow(Record):
    """Numbers logged at one training step: LeRobot's meters and ours, by name. Losses are means since the
    row before, times are seconds."""

    step: int
    action_loss: float | None = None
    align_loss: float | None = None
    cosine: float | None = None
    gradient_ratio: float | None = None
    valid_fraction: float | None = None
    update_s: float | None = None
    dataloading_s: float | None = None

    @model_serializer(mode="wrap")
    def _what_was_measured(self, whole: Any) -> dict[str, Any]:
        return without_none(whole(self))


def without_none(record: dict[str, Any]) -> dict[str, Any]:
    """Drops the values of a record that were not measured."""
    return {name: value for name, value in record.items() if value is not None}


def curve_rows(logged: Iterable[Mapping[str, Any]]) -> list[CurveRow]:
    """Merges the rows of ``metrics.jsonl`` by step: training and evaluation losses of a step become one row.

    Raises:
        ResultsError: a row has no step, or text where a number belongs.
    """
    by_step: dict[Any, dict[str, Any]] = {}
    for row in logged:
        by_step.setdefault(row.get("step"), {}).update(row)
    return sorted((CurveRow.checked(row, "metrics") for row in by_step.values()), key=lambda row: row.step)


class RunResults(Record):
    """One training run: an arm with one seed on one fraction of the data. A run without curves or evaluations
    has not finished.

    Attributes:
        arm: its name, a key of ``Results.arms``.
        seed: of weights and data order.
        fraction: of the training episodes that it saw, in (0, 1].
        train_episodes: how many that was.
        steps: training steps asked for.
        parameters: of the policy.
        curves: what was logged, by step.
        evaluations: of its checkpoints, by step.
        videos: of the last one, relative to the folder of the results.
        seconds_per_step: of an update, without waiting for data; a median.
        dataloading_seconds: waiting for data per step; a median.
        peak_memory_mb: of the accelerator, or of the process without one.
    """

    arm: str
    seed: int
    fraction: float = Field(default=1.0, gt=0, le=1)
    train_episodes: int | None = None
    steps: int
    parameters: int
    curves: list[CurveRow]
    evaluations: list[Evaluation]
    videos: list[str] | None = None
    seconds_per_step: float | None = None
    dataloading_seconds: float | None = None
    peak_memory_mb: float | None = None

    @field_validator("curves", "evaluations")
    @classmethod
    def _steps_increase(cls, rows: list[Any]) -> list[Any]:
        steps = [row.step for row in rows]
        if steps != sorted(set(steps)):
            raise ValueError(f"the steps must increase, got {steps}")
        return rows

    @property
    def trained_steps(self) -> int:
        """The last step with a logged row or an evaluation."""
        return max([row.step for row in self.curves] + [e.step for e in self.evaluations], default=0)

    @property
    def finished(self) -> bool:
        """Whether its last checkpoint was evaluated."""
        return bool(self.evaluations) and self.evaluations[-1].step >= self.steps
