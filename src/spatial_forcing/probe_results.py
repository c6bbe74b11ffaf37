"""Depth probe results in a comparison's ``results.json`` and report: a table and curves by layer."""

from typing import Literal

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.json_record import Record

try:
    from pydantic import AliasChoices, Field
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error


class DepthUsed(Record):
    """The depth source that heads were fitted to and evaluated on.

    Attributes:
        name: display name; says "pseudo" where it is a model's estimate.
        kind: recorded, or pseudo.
        unit: of RMSE and of ``far``.
        far: depth beyond is neither fitted nor judged.
    """

    name: str
    kind: Literal["recorded", "pseudo"]
    unit: str
    far: float


class Difference(Record):
    """Difference in AbsRel of a source to another, on the same cells: below zero is better.

    Attributes:
        absrel: the difference.
        low, high: its interval over test episodes, both sources judged on the same; None with one episode.
    """

    absrel: float
    low: float | None = None
    high: float | None = None


class ProbeRow(Record):
    """Result row: one source of tokens, with its probe's metrics on the test episodes.

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
    """Depth probe results of a comparison.

    Attributes:
        rows: the sources and the references.
        image: the file that shows test frames, relative to the folder of the results.
        train_frames, test_frames, test_episodes: how much the probes were fitted on and judged on.
        confidence: of the intervals.
        sub_grid: cells per side of a token.
        far_m: depth beyond that is neither fitted nor judged.
        depth: what was read; None in older files, of recorded depth.
    """

    rows: list[ProbeRow]
    image: str | None = Field(None, validation_alias=AliasChoices("image", "picture"))
    train_frames: int
    test_frames: int
    test_episodes: int | None = None
    confidence: float | None = None
    sub_grid: int | None = None
    far_m: float | None = None
    depth: DepthUsed | None = None


class LayerPoint(Record):
    """AbsRel at one site, for the plot by layer."""

    layer: int
    absrel: float
    low: float | None = None
    high: float | None = None


class ProbeSection(Record):
    """AbsRel by layer, for every policy and stack of blocks, for the report.

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
