"""Results of a comparison as they lie on disk, written and read by the same classes.

    results.json                  Results: where it comes from, its arms, the depth probe
    runs/<arm>/eval/000500.json   Evaluation: one checkpoint, with its Episodes

``report.json`` holds the same classes where it says the same (``report.records``). What was not measured is
None or left out.
"""

import json
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.json_record import Record

try:
    from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_serializer
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error


# ---- arms --------------------------------------------------------------------------------------------------


class Episode(Record):
    """One rollout.

    Attributes:
        task, seed: which episode it was; policies are compared on equal ones.
        success: whether it was solved.
        final_distance, closest_distance: to the goal when it ended and at its best moment, metres.
        steps: control steps.
    """

    task: str
    seed: int
    success: bool
    final_distance: float | None = None
    closest_distance: float | None = None
    steps: int | None = None


class Evaluation(Record):
    """What a policy did.

    Attributes:
        step: training step of the checkpoint.
        heldout_error: mean absolute error of the action chunk on held-out demonstrations, in standard
            deviations of each action dimension.
        episodes: in the order of the seeds.
        videos: files of the first few episodes, relative to the folder of the arm.
        seconds: wall time of the rollouts.
    """

    step: int
    heldout_error: float | None = None
    episodes: list[Episode]
    videos: list[str] = Field(default_factory=list)
    seconds: float | None = None

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
    """What was logged at one training step: LeRobot's meters and ours, by name. Losses are means since the
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
        return {name: value for name, value in whole(self).items() if value is not None}


class ArmHead(Record):
    """What every table says of an arm.

    Attributes:
        label: for people.
        role: see ``study.Arm``.
        seed: of weights and data order.
        steps: training steps asked for.
        parameters: of the policy.
    """

    label: str
    role: Literal["arm", "control", "reference"]
    seed: int
    steps: int
    parameters: int


class ArmResults(ArmHead):
    """An arm. One without curves or evaluations has not finished.

    Attributes:
        curves: what was logged, by step.
        evaluations: of its checkpoints, by step.
        videos: of the last one, relative to the folder of the results.
    """

    curves: list[CurveRow]
    evaluations: list[Evaluation]
    videos: list[str] | None = None

    @field_validator("curves", "evaluations")
    @classmethod
    def _steps_increase(cls, rows: list[Any]) -> list[Any]:
        steps = [row.step for row in rows]
        if steps != sorted(set(steps)):
            raise ValueError(f"the steps must increase, got {steps}")
        return rows


# ---- the depth probe ---------------------------------------------------------------------------------------


class Difference(Record):
    """AbsRel of a source less that of another, on the same cells: below zero is better.

    Attributes:
        absrel: the difference.
        low, high: its interval over test episodes, both sources judged on the same; None with one episode.
    """

    absrel: float
    low: float | None = None
    high: float | None = None


class ProbeRow(Record):
    """One source of tokens and how its probe did on the test episodes.

    Attributes:
        name: of the source.
        absrel, rmse_m, delta1: over all cells of all test frames; see ``probe.DepthMetrics``.
        pixels: how many cells that was.
        ridge: the ridge strength; None for mean depth.
        intervals: 95 % bootstrap intervals (low, high) over test episodes by metric; None with one test
            episode.
        differences: to other rows (mean depth, and the baseline if one was named), paired by test episode.
    """

    name: str
    absrel: float
    rmse_m: float
    delta1: float
    pixels: int | None = None
    ridge: float | None = None
    intervals: dict[str, list[float]] | None = None
    differences: dict[str, Difference] | None = None


class Probe(Record):
    """The depth probe of a comparison.

    Attributes:
        rows: the sources and the references.
        image: the file that shows test frames, relative to the folder of the results.
        train_frames, test_frames, test_episodes: how much the probes were fitted on and judged on.
        confidence: of the intervals.
        sub_grid: cells per side of a token.
        far_m: depth beyond that is neither fitted nor judged.
    """

    rows: list[ProbeRow]
    image: str | None = Field(None, validation_alias=AliasChoices("image", "picture"))
    train_frames: int
    test_frames: int
    test_episodes: int | None = None
    confidence: float | None = None
    sub_grid: int | None = None
    far_m: float | None = None


# ---- the whole ---------------------------------------------------------------------------------------------


class TeacherUsed(Record):
    """The teacher that arms were forced toward: its name, a checksum of its weights, their licence."""

    name: str
    fingerprint: str
    licence: str
    note: str | None = None


class Sample(Record):
    """An image of the data, relative to the folder of the results."""

    path: str
    caption: str


class Provenance(Record):
    """What a comparison was made with.

    Attributes:
        title: of the report.
        created: UTC, ISO 8601.
        command: as typed.
        commit: of this package's source tree, None outside a checkout.
        versions, hardware: see ``spatial_forcing.provenance``.
        settings: everything that decides the result.
        teacher: that arms were forced toward.
        timings: seconds by stage.
        tasks: of the evaluation.
    """

    title: str
    created: str
    command: str
    commit: str | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    settings: dict[str, Any]
    teacher: TeacherUsed
    timings: dict[str, float]
    tasks: list[str]


class Results(Provenance):
    """Everything a report is drawn from.

    Attributes:
        arms: by name.
        probe: None if it was not run.
        samples: images of the data.
        comparisons: pairs (a, b) of arms to compare; see ``report.summary`` for what is compared if None.
    """

    arms: dict[str, ArmResults]
    probe: Probe | None = None
    samples: list[Sample] | None = None
    comparisons: list[list[str]] | None = None

    @field_validator("arms")
    @classmethod
    def _some_arms(cls, arms: dict[str, ArmResults]) -> dict[str, ArmResults]:
        if not arms:
            raise ValueError("it is empty, there is nothing to report")
        return arms

    @field_validator("comparisons")
    @classmethod
    def _pairs_of_arms(cls, pairs: list[list[str]] | None, others: ValidationInfo) -> list[list[str]] | None:
        arms = others.data.get("arms")
        for pair in pairs or []:
            if len(pair) != 2 or (arms is not None and not set(pair) <= set(arms)):
                names = ", ".join(arms or {})
                raise ValueError(f"comparisons are pairs of arms, got {pair}. Arms: {names}")
        return pairs

    def save(self, path: Path) -> None:
        """Writes ``results.json``; the videos of single evaluations are in those of the arm."""
        per_arm = {"__all__": {"evaluations": {"__all__": {"videos"}}}}
        write_text(path, json.dumps(self.plain(exclude={"arms": per_arm}), indent=1))
