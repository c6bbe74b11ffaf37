"""Result records of a probe as saved in ``probe.json``, and their part in a comparison's report."""

import json
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.files import write_text
from spatial_forcing.json_record import Record
from spatial_forcing.probe_results import (
    DepthUsed,
    Difference,
    LayerPoint,
    Probe,
    ProbeRow,
    ProbeSection,
)

# What gives the others a scale. No arm of a comparison can have such a name.
MEAN, PIXELS, TEACHER = "mean depth", "raw pixels", "teacher's features"
SHUFFLED, UNTRAINED = "shuffled tokens", "untrained host"
REFERENCES = (MEAN, PIXELS, TEACHER, SHUFFLED, UNTRAINED)


class ProbedHead(Record):
    """A policy that was probed.

    Attributes:
        name: as the user named it.
        type: its LeRobot policy type.
        checkpoint: as it was given.
        sites: that were read, in order.
        aligned_site: the one that its host record recommends for the tap.
    """

    name: str
    type: str
    checkpoint: str
    sites: list[str]
    aligned_site: str


class SourceRow(Record):
    """Result row: one source of tokens, read by one kind of head.

    Attributes:
        source: the name of a policy, or a reference: "mean depth", "raw pixels", "teacher's features",
            "shuffled tokens", "untrained host".
        reference: whether it is there to give the others a scale.
        site: of a policy or of shuffled tokens; None of the other references.
        head: which head read it.
        metrics: by name, see ``probe.quality``; of DPT heads the mean over seeds.
        intervals: 95 % bootstrap intervals over test episodes; None with one episode.
        by_seed: AbsRel of the head of each seed; None of the linear head, which has none.
        cells: how many cells of test frames were judged.
        ridge: strength of the linear head.
        differences: AbsRel less that of another source at the same cells, paired by episode.
        points_cm: mean distance in centimetres of each position, linear head only.
        points_intervals: theirs.
    """

    source: str
    reference: bool = False
    site: str | None = None
    head: Literal["linear", "dpt"]
    metrics: dict[str, float]
    intervals: dict[str, list[float]] | None = None
    by_seed: list[float] | None = None
    cells: int
    ridge: float | None = None
    differences: dict[str, Difference] | None = None
    points_cm: dict[str, float] | None = None
    points_intervals: dict[str, list[float]] | None = None

    @property
    def label(self) -> str:
        return self.source if self.site is None else f"{self.source} {self.site}"


class RankedSite(Record):
    """A site ranked as a place for the tap.

    Attributes:
        site: which.
        absrel: of the linear head there.
        low, high: its interval; None with one test episode.
        best: the share of resamples of the test episodes in which no other site has a lower AbsRel.
        near_best: the share in which it is within 2 % of the lowest.
        mean_rank: mean of its rank in the resamples, from 1.
    """

    site: str
    absrel: float
    low: float | None = None
    high: float | None = None
    best: float | None = None
    near_best: float | None = None
    mean_rank: float | None = None


class Suggestion(Record):
    """Suggested sites for the tap of one policy, the best first, and a verdict on how sure that is."""

    policy: str
    ranked: list[RankedSite]
    verdict: str


class ProbeReport(Record):
    """All results of one run of ``spatial-forcing probe``.

    Attributes:
        created, command, commit, versions, hardware: see ``provenance``.
        dataset: as it was given.
        cameras: of the data set, in the order of the visual tokens.
        depth: what was read.
        policies: that were probed.
        train_episodes, test_episodes: fitted on and judged on; none is in both, and each has a frame that was
            looked at.
        train_frames, test_frames: how many frames of them were looked at.
        settings: of the heads.
        rows: every source, site and head.
        suggestion: of a site for the tap, if it was asked for.
        notes: what a reader should know.
        seconds: wall time.
    """

    created: str
    command: str
    commit: str | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    dataset: str
    cameras: list[str]
    depth: DepthUsed
    policies: list[ProbedHead]
    train_episodes: list[int]
    test_episodes: list[int]
    train_frames: int
    test_frames: int
    settings: dict[str, Any]
    rows: list[SourceRow]
    suggestion: Suggestion | None = None
    notes: list[str]
    seconds: float

    def save(self, path: Path) -> Path:
        """Writes ``probe.json``."""
        return write_text(path, json.dumps(self.plain(), indent=1))

    @property
    def heads(self) -> list[str]:
        """The kinds of heads with rows of policies (mean depth alone always has a linear one)."""
        return list(dict.fromkeys(row.head for row in self.rows if row.source != MEAN))

    def references(self, head: str = "linear") -> list[SourceRow]:
        """The rows of the references."""
        return [row for row in self.rows if row.reference and row.head == head]


def probe_section(report: ProbeReport) -> ProbeSection:
    """AbsRel of the linear head by layer, with reference lines, for the report."""
    stacks: dict[str, dict[str, list[LayerPoint]]] = {}
    lines: dict[str, float] = {}
    for row in (row for row in report.rows if row.head == "linear"):
        if row.site is None or row.source == SHUFFLED:
            lines.setdefault(row.source, row.metrics["absrel"])
            continue
        stack, layer = row.site.split(".")
        low, high = (row.intervals or {}).get("absrel", (None, None))
        point = LayerPoint(layer=int(layer), absrel=row.metrics["absrel"], low=low, high=high)
        stacks.setdefault(stack, {}).setdefault(row.source, []).append(point)
    for policies in stacks.values():
        for points in policies.values():
            points.sort(key=lambda point: point.layer)
    aligned = {one.name: int(one.aligned_site.split(".")[1]) for one in report.policies}
    return ProbeSection(stacks=stacks, lines=lines, aligned=aligned, depth=report.depth)


def probe_at_aligned_sites(report: ProbeReport, image: str | None) -> Probe:
    """Results of the linear head at the aligned site of every policy and on the references, for the report.

    Args:
        report: what was found.
        image: the file that shows test frames.
    """
    sites = {one.name: one.aligned_site for one in report.policies}
    rows = [
        ProbeRow(
            name=row.source,
            absrel=row.metrics["absrel"],
            rmse_m=row.metrics["rmse"],
            delta1=row.metrics["delta1"],
            pixels=row.cells,
            ridge=row.ridge,
            intervals=_renamed(row.intervals),
            differences=row.differences,
        )
        for row in report.rows
        if row.head == "linear" and row.site in (None, sites.get(row.source, row.site))
    ]
    return Probe(
        rows=rows,
        image=image,
        train_frames=report.train_frames,
        test_frames=report.test_frames,
        test_episodes=len(report.test_episodes),
        far_m=report.depth.far,
        depth=report.depth,
    )


def _renamed(intervals: dict[str, list[float]] | None) -> dict[str, list[float]] | None:
    """Renames intervals to the metric names of :class:`ProbeRow`."""
    if intervals is None:
        return None
    names = {"absrel": "absrel", "rmse": "rmse_m", "delta1": "delta1"}
    return {ours: intervals[theirs] for theirs, ours in names.items() if theirs in intervals}
