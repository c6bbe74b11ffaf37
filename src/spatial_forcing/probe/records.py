"""What a probe found, as it lies on disk in ``probe.json``, and what a report shows of it."""

import json
from pathlib import Path
from typing import Any, Literal

from spatial_forcing.files import write_text
from spatial_forcing.json_record import Record
from spatial_forcing.results import Difference


class ProbedHead(Record):
    """A policy that was probed.

    Attributes:
        name: as it was called.
        type: LeRobot's name of its kind.
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
    """One source of tokens, read by one kind of head.

    Attributes:
        source: the name of a policy, "untrained", or a reference: "mean depth", "pixels", "teacher",
            "shuffled".
        reference: whether it is there to give the others a scale.
        site: of a policy or of "shuffled"; None of the other references.
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
    """A site as a place for the tap.

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
    """Sites of one policy, the best first, and in words how sure that is."""

    policy: str
    ranked: list[RankedSite]
    verdict: str


class DepthUsed(Record):
    """The depth that everything was fitted to and judged by.

    Attributes:
        name: for people; says "pseudo" where it is a model's estimate.
        kind: recorded, or pseudo.
        unit: of RMSE and of ``far``.
        far: depth beyond is neither fitted nor judged.
    """

    name: str
    kind: Literal["recorded", "pseudo"]
    unit: str
    far: float


class ProbeReport(Record):
    """All that one run of ``spatial-forcing probe`` found.

    Attributes:
        created, command, commit, versions, hardware: see ``provenance``.
        dataset: as it was given.
        cameras: of the data set, in the order of the visual tokens.
        depth: what was read.
        policies: that were probed.
        train_episodes, test_episodes: fitted on and judged on; none is in both.
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
        """The kinds of heads that read policies; of mean depth alone there is always a linear one."""
        return list(dict.fromkeys(row.head for row in self.rows if row.source != "mean depth"))

    def references(self, head: str = "linear") -> list[SourceRow]:
        """The rows that give the others a scale."""
        return [row for row in self.rows if row.reference and row.head == head]


class LayerPoint(Record):
    """AbsRel at one site, for a plot against the layer."""

    layer: int
    absrel: float
    low: float | None = None
    high: float | None = None


class ProbeSection(Record):
    """What a report draws of a probe: AbsRel against the layer, for every policy and stack of blocks.

    Attributes:
        stacks: "blocks" and "vision" where it was read -> policy -> its points in order.
        lines: AbsRel of the references, by name.
        aligned: the layer of the recommended site, by policy.
        depth: what was read, for the caption.
    """

    stacks: dict[str, dict[str, list[LayerPoint]]]
    lines: dict[str, float]
    aligned: dict[str, int]
    depth: DepthUsed


def probe_section(report: ProbeReport) -> ProbeSection:
    """AbsRel of the linear head against the layer, with the reference lines."""
    stacks: dict[str, dict[str, list[LayerPoint]]] = {}
    lines: dict[str, float] = {}
    for row in (row for row in report.rows if row.head == "linear"):
        if row.site is None or row.source == "shuffled":
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
