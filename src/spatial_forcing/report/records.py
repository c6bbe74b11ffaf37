"""What a report says, as records: ``report.json`` is a :class:`Summary`."""

from math import isfinite
from typing import Any

from pydantic import Field

from spatial_forcing.json_record import Record
from spatial_forcing.results import ArmHead, ProbeRow, Provenance
from spatial_forcing.stats import Interval, Reach

Points = list[tuple[int, float]]


class ArmSummary(ArmHead):
    """The state of an arm at its last evaluation; None where nothing was measured.

    Attributes:
        trained_steps, evaluated_step, finished: how far it got.
        success, tasks: rates of its last evaluation, over all and by task.
        final_distance_cm, closest_distance_cm: means over its episodes, centimetres.
        heldout_error: see ``results.Evaluation``.
        action_loss: mean over the last tenth of the steps.
        update_ms, dataloading_ms: medians over training, milliseconds per step.
    """

    seed: int
    steps: int
    parameters: int
    trained_steps: int
    evaluated_step: int | None
    finished: bool
    success: Interval | None
    tasks: dict[str, Interval | None]
    final_distance_cm: float | None
    closest_distance_cm: float | None
    heldout_error: float | None
    action_loss: float | None
    update_ms: float | None
    dataloading_ms: float | None


class Errors(Record):
    """Held-out errors of a and b at the last step at which both have one."""

    step: int
    a: float
    b: float


class Comparison(Record):
    """Two arms on the same episodes, at the last step at which both were evaluated.

    Attributes:
        a, b: names; b is the arm under test.
        step: that step, None if there is none.
        problem: why there is no test, None if there is one.
        success_a, success_b: at that step.
        both, only_a, only_b, neither: episodes by who solved them.
        p_value: see ``stats.mcnemar``.
        difference_points: success rate of b less that of a, percentage points.
        reach: when both reached the last held-out error of a.
        heldout: held-out errors.
        first_step: of the first evaluation of a.
    """

    a: str
    b: str
    step: int | None = None
    problem: str | None = None
    success_a: Interval | None = None
    success_b: Interval | None = None
    both: int | None = None
    only_a: int | None = None
    only_b: int | None = None
    neither: int | None = None
    p_value: float | None = None
    difference_points: float | None = None
    reach: Reach | None = None
    heldout: Errors | None = None
    first_step: int | None = None


class ProbeSummary(Record):
    """The depth probe; ``versus`` names the rows that others are compared with."""

    rows: list[ProbeRow]
    versus: list[str]
    train_frames: int
    test_frames: int
    test_episodes: int | None


class RatePoint(Record):
    """A success rate at a step."""

    step: int
    rate: float
    low: float
    high: float
    successes: int
    episodes: int


class Plots(Record):
    """What the plots draw, by arm."""

    success: dict[str, list[RatePoint]]
    heldout_error: dict[str, Points]
    closest_distance_cm: dict[str, Points]
    action_loss: dict[str, Points]
    cosine: dict[str, Points]
    gradient_ratio: dict[str, Points]


class Summary(Provenance):
    """Every number of a report, and what it says of them."""

    arms: dict[str, ArmSummary]
    comparisons: list[Comparison]
    probe: ProbeSummary | None
    plots: Plots
    headline: str = ""
    notes: list[str] = Field(default_factory=list)

    def json_data(self) -> dict[str, Any]:
        """As JSON data without NaN or infinity, which JSON does not know. What only fitting the probe needs
        stays in ``results.json``."""
        return without_nan(self.plain(exclude={"probe": {"rows": {"__all__": {"ridge", "pixels"}}}}))


def without_nan(value: Any) -> Any:
    """The same data with None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
