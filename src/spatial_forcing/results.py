"""Result files of a comparison, written and read by the same record classes.

    results.json                                   Results: where it comes from, its arms and runs, the probe
    runs/<arm>-f<percent>-s<seed>/eval/000500.json Evaluation: one checkpoint, with its Episodes

A comparison is arms x seeds x fractions of the training episodes; one of each is a run. ``report.json`` holds
the same classes where it says the same (``report.records``). What was not measured is None or left out.
"""

import json
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_text
from spatial_forcing.json_record import Record
from spatial_forcing.probe_results import Difference, Probe, ProbeRow, ProbeSection
from spatial_forcing.run_results import CurveRow, Episode, Evaluation, RunResults, curve_rows

try:
    from pydantic import Field, ValidationInfo, field_validator, model_validator
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error

__all__ = [
    "ArmHead",
    "CurveRow",
    "Difference",
    "Episode",
    "Evaluation",
    "Probe",
    "ProbeRow",
    "ProbeSection",
    "Provenance",
    "Results",
    "RunResults",
    "Sample",
    "TeacherUsed",
    "curve_rows",
]


# ---- arms --------------------------------------------------------------------------------------------------


class ArmHead(Record):
    """Description of an arm of a comparison: runs of one arm differ in seed and data only.

    Attributes:
        label: display name.
        role: "arm"; "control", whose target has nothing of the teacher's content; "reference", a line to read
            the others against and no competitor.
        differs: the flags in which it differs from the plain arm: ``--policy.forcing.loss_weight=2.0``.
        of: of a control, the arm that is held against it; all arms are if None.
    """

    label: str
    role: Literal["arm", "control", "reference"]
    differs: list[str] = Field(default_factory=list)
    of: str | None = None


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
    """Provenance of a comparison: command, versions, settings, teacher, timings.

    Attributes:
        title: of the report.
        created: UTC, ISO 8601.
        command: as typed.
        commit: of this package's source tree, None outside a checkout.
        versions, hardware: see ``spatial_forcing.provenance``.
        settings: everything that decides the result.
        teacher: that arms were forced toward, None if none was.
        timings: seconds by stage.
        tasks: of the evaluation.
        warnings: that the checks before the first step or rollout gave, and the comparison went on with.
        seeds_added: those of the seeds that were added when there were results of the others.
    """

    title: str
    created: str
    command: str
    commit: str | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    settings: dict[str, Any]
    teacher: TeacherUsed | None = None
    timings: dict[str, float]
    tasks: list[str]
    warnings: list[str] = Field(default_factory=list)
    seeds_added: list[int] = Field(default_factory=list)


class Results(Provenance):
    """All results of a comparison, from which the report is made.

    In files of before there were seeds and fractions each of ``arms`` held one run; they are read as an arm
    and a run each.

    Attributes:
        arms: by name.
        runs: of the arms, at most one for each arm, seed and fraction.
        probe: at the aligned site; None if it was not run.
        probe_sites: the same at every site.
        samples: images of the data.
        comparisons: pairs (a, b) of arms to compare, b the one under test; :meth:`pairs` says which if None.
    """

    arms: dict[str, ArmHead]
    runs: list[RunResults]
    probe: Probe | None = None
    probe_sites: ProbeSection | None = None
    samples: list[Sample] | None = None
    comparisons: list[list[str]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _runs_inside_arms(cls, data: Any) -> Any:
        arms = data.get("arms") if isinstance(data, dict) else None
        if not arms or "runs" in data or not isinstance(arms, dict):
            return data
        if not all(isinstance(arm, dict) for arm in arms.values()):
            return data
        heads = {
            name: {k: v for k, v in arm.items() if k in ArmHead.model_fields} for name, arm in arms.items()
        }
        runs = [
            {"arm": name, **{k: v for k, v in arm.items() if k not in ArmHead.model_fields}}
            for name, arm in arms.items()
        ]
        return data | {"arms": heads, "runs": runs}

    @field_validator("arms")
    @classmethod
    def _some_arms(cls, arms: dict[str, ArmHead]) -> dict[str, ArmHead]:
        if not arms:
            raise ValueError("it is empty, there is nothing to report")
        return arms

    @field_validator("runs")
    @classmethod
    def _of_the_arms_and_once_each(cls, runs: list[RunResults], others: ValidationInfo) -> list[RunResults]:
        arms, seen = others.data.get("arms"), set()
        for run in runs:
            if arms is not None and run.arm not in arms:
                raise ValueError(f"a run is of the arm {run.arm!r}, which is none of: {', '.join(arms)}")
            key = run.arm, run.seed, run.fraction
            if key in seen:
                raise ValueError(
                    f"a run appears twice: {run.arm} with seed {run.seed} on {run.fraction:g} of the data"
                )
            seen.add(key)
        return runs

    @field_validator("comparisons")
    @classmethod
    def _pairs_of_arms(cls, pairs: list[list[str]] | None, others: ValidationInfo) -> list[list[str]] | None:
        arms = others.data.get("arms")
        for pair in pairs or []:
            if len(pair) != 2 or (arms is not None and not set(pair) <= set(arms)):
                names = ", ".join(arms or {})
                raise ValueError(f"comparisons are pairs of arms, got {pair}. Arms: {names}")
        return pairs

    @property
    def plain_arm(self) -> str | None:
        """The baseline that arms are compared with: "plain", "baseline", or the first; None without arms."""
        names = self.named("arm")
        return next((name for name in ("plain", "baseline") if name in names), next(iter(names), None))

    def named(self, role: str) -> list[str]:
        """Names of the arms of a role, in order."""
        return [name for name, arm in self.arms.items() if arm.role == role]

    def fractions(self) -> list[float]:
        """The fractions of the data that runs were trained on, smallest first."""
        return sorted({run.fraction for run in self.runs})

    def runs_of(self, arm: str, fraction: float | None = None) -> list[RunResults]:
        """The runs of an arm by seed, on one fraction of the data; on the largest there is if None."""
        fraction = max(self.fractions(), default=1.0) if fraction is None else fraction
        found = [run for run in self.runs if run.arm == arm and run.fraction == fraction]
        return sorted(found, key=lambda run: run.seed)

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs (a, b) to compare: those specified; else the plain arm with every other arm, and every
        control with every arm, or with the one that it is of."""
        if self.comparisons is not None:
            return [(a, b) for a, b in self.comparisons]
        first = self.plain_arm
        against = [name for name in (first, *self.named("control")) if name is not None]
        return [
            (a, b) for b in self.named("arm") if b != first for a in against if self.arms[a].of in (None, b)
        ]

    def save(self, path: Path) -> None:
        """Writes ``results.json``; the videos of single evaluations are in those of their run."""
        per_run = {"__all__": {"evaluations": {"__all__": {"videos"}}}}
        write_text(path, json.dumps(self.plain(exclude={"runs": per_run}), indent=1))
