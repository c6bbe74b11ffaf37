"""Records of a report's content: ``report.json`` is a :class:`Summary`."""

from math import isfinite
from typing import Any, Literal

from pydantic import Field

from spatial_forcing.estimates import Variance
from spatial_forcing.json_record import Record
from spatial_forcing.power import ALPHA
from spatial_forcing.probe_results import DepthUsed, ProbeRow, ProbeSection
from spatial_forcing.results import ArmHead, Provenance
from spatial_forcing.stats import Interval

Points = list[tuple[float, float]]
# Points of each seed of each arm.
Series = dict[str, dict[int, Points]]


class Spread(Record):
    """An estimate with its 95 % interval; without one where one value, or equal values, tell no spread."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Cost(Record):
    """Training cost of an arm: time and memory; None where nothing was measured.

    Attributes:
        update_ms, dataloading_ms: per step, mean over seeds of the medians, milliseconds.
        peak_memory_mb: the most of its seeds.
        update_ratio, dataloading_ratio, peak_memory_ratio: to the plain arm's, geometric means over the seeds
            that both have.
    """

    update_ms: float | None
    dataloading_ms: float | None
    peak_memory_mb: float | None
    update_ratio: Spread | None = None
    dataloading_ratio: Spread | None = None
    peak_memory_ratio: Spread | None = None


class ArmSummary(ArmHead):
    """Summary of an arm at its last evaluation, on all of the data; None where nothing was measured.

    Attributes:
        seeds: that were evaluated at that step.
        seeds_planned: of which there are runs.
        steps: training steps asked for.
        parameters: of the policy.
        evaluated_step: of the last evaluation.
        finished: whether all its runs were evaluated after their last step.
        success: over all seeds and episodes, with the interval of ``estimates.rate``.
        tasks: success by task.
        phases: rates of the phases of its episodes, such as "reached"; empty if its environment tells none.
        final_distance_cm, closest_distance_cm: means over episodes, centimetres.
        heldout_error, heldout_loss: means over seeds; see ``results.Evaluation``.
        constant_error: the error of predicting the mean of the held-out actions, whatever is seen.
        error_by_seed: held-out errors.
        action_loss: mean over the last tenth of the steps.
    """

    seeds: list[int]
    seeds_planned: list[int]
    steps: int
    parameters: int
    evaluated_step: int | None
    finished: bool
    success: Interval | None
    tasks: dict[str, Interval | None]
    phases: dict[str, Interval] = Field(default_factory=dict)
    final_distance_cm: float | None
    closest_distance_cm: float | None
    heldout_error: float | None
    heldout_loss: float | None
    constant_error: float | None = None
    error_by_seed: dict[int, float]
    action_loss: float | None
    cost: Cost


class Errors(Record):
    """Held-out errors of a and b at the last step at which a seed of both has one.

    Attributes:
        step, seeds: that step, and the seeds that have it.
        a, b: means over these seeds.
        difference: mean of b - a with its t interval over seeds.
        by_seed: b - a.
        p_value: of the paired t-test over seeds; None for one seed.
        p_holm: corrected for the arms that were compared with a.
        level: two-sided level of a single comparison at Holm's strictest.
        detectable: the smallest difference that so many seeds show with power 0.8 at that level; None for
            one.
        diverged: the runs whose error was not finite, such as "forced in seed 2": they are left out of the
            numbers, and with one of them nothing is tested.
    """

    step: int
    seeds: list[int]
    a: float
    b: float
    difference: Spread
    by_seed: dict[int, float]
    p_value: float | None = None
    p_holm: float | None = None
    level: float = ALPHA
    detectable: float | None = None
    diverged: list[str] = Field(default_factory=list)


class ToTarget(Record):
    """Steps, or data, that a and b needed to reach the last held-out error of a.

    Attributes:
        unit: of a and b.
        target: mean over seeds of the error to reach.
        a, b: by seed, as text: "400", "> 400" for not by then, "<= 100" for at the first already.
        ratio: geometric mean over seeds of a / b, as text: "1.3 (1.1 to 1.6)", "> 2.0", "< 1.3" or "unknown".
        bounds: how many seeds are bounds.
    """

    unit: Literal["steps", "episodes", "% of the data"]
    target: float
    a: dict[int, str]
    b: dict[int, str]
    ratio: str
    bounds: int


class Comparison(Record):
    """Paired comparison of two arms, at the last step at which a seed of both was evaluated.

    Attributes:
        a, b: names; b is the arm under test.
        step: that step, None if there is none.
        seeds: that were evaluated at it.
        left_out: seeds in which success was not compared, with the reason.
        problem: why success was not compared at all, None if it was.
        success_a, success_b: over these seeds, with the intervals of ``estimates.rate``.
        both, only_a, only_b, neither: episodes by who solved them, over these seeds.
        p_value: of McNemar's exact test, seeds that ran the same episode together.
        p_holm: corrected for the arms that were compared with a.
        difference: success rate of b less that of a in percentage points; interval over seeds and episodes.
        ratio: success rate of b over that of a; interval over seeds and episodes.
        by_seed: differences in points.
        variance: of the difference, as a share and not in points.
        level: two-sided level of a single comparison at Holm's strictest.
        detectable: the smallest difference in points that these episodes and seeds, varying as they do, show
            with power 0.8 at that level; None if no difference is large enough.
        needed: how many seeds on as many episodes would show the difference with power 0.8; of one seed, how
            many pairs of episodes at least. None for no gain, and where no number of seeds would.
        errors: held-out errors.
        steps_to_target, data_to_target: how soon both were at the last held-out error of a.
    """

    a: str
    b: str
    step: int | None = None
    seeds: list[int] = Field(default_factory=list)
    left_out: dict[int, str] = Field(default_factory=dict)
    problem: str | None = None
    success_a: Interval | None = None
    success_b: Interval | None = None
    both: int | None = None
    only_a: int | None = None
    only_b: int | None = None
    neither: int | None = None
    p_value: float | None = None
    p_holm: float | None = None
    difference: Spread | None = None
    ratio: Spread | None = None
    by_seed: dict[int, float] = Field(default_factory=dict)
    variance: Variance | None = None
    level: float = ALPHA
    detectable: float | None = None
    needed: int | None = None
    errors: Errors | None = None
    steps_to_target: ToTarget | None = None
    data_to_target: ToTarget | None = None


class RunState(Record):
    """Progress of a run."""

    arm: str
    seed: int
    fraction: float
    train_episodes: int | None
    trained_steps: int
    evaluated_step: int | None
    steps: int
    finished: bool


class ProbeSummary(Record):
    """Depth probe results in the report.

    Attributes:
        rows: sources at the aligned site, and references.
        versus: the rows that others are compared with.
        depth: what was read; None in older results.
    """

    rows: list[ProbeRow]
    versus: list[str]
    depth: DepthUsed | None = None
    train_frames: int
    test_frames: int
    test_episodes: int | None


class Plots(Record):
    """Data of the plots.

    Attributes:
        logged: during training, by name of the quantity; on all of the data.
        measured: at evaluations, by name; on all of the data.
        by_data: at the last step, by name, over the unit of ``data_unit``.
        success_by_data: at the last step, by arm and amount, over all seeds.
        data_unit: of the amount of data; None if there is one amount only.
        probe_sites: what a depth probe read at every site; None without one.
    """

    logged: dict[str, Series]
    measured: dict[str, Series]
    by_data: dict[str, Series]
    success_by_data: dict[str, dict[int, Interval]] = Field(default_factory=dict)
    data_unit: str | None = None
    probe_sites: ProbeSection | None = None


class Verdict(Record):
    """Verdict of a comparison as sentences: a headline, what is shown, what is not, what it would take."""

    headline: str
    shown: list[str]
    not_shown: list[str]
    takes: list[str]


class Summary(Provenance):
    """Content of a report: every number, and the verdict and notes on them.

    Attributes:
        plain_arm: that others are measured against.
        against_plain: every arm and control with the plain arm; ``comparisons`` has the pairs that count.
    """

    plain_arm: str | None
    arms: dict[str, ArmSummary]
    runs: list[RunState]
    comparisons: list[Comparison]
    against_plain: list[Comparison]
    probe: ProbeSummary | None
    plots: Plots
    verdict: Verdict | None = None
    notes: list[str] = Field(default_factory=list)

    @property
    def phases(self) -> list[str]:
        """Names of the phases that the environment tells, in their order."""
        return list(dict.fromkeys(name for arm in self.arms.values() for name in arm.phases))

    def json_data(self) -> dict[str, Any]:
        """Converts to JSON data without NaN or infinity, which JSON does not know. What only fitting the
        probe needs stays in ``results.json``."""
        return without_nan(self.plain(exclude={"probe": {"rows": {"__all__": {"ridge", "pixels"}}}}))


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinity by None in nested data."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
