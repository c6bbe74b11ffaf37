"""The depth probe in one call, for tests that know depth, episodes and images one by one."""

from typing import Any

from torch import Tensor

from spatial_forcing.probe import DepthMetrics, Frames, ProbeResult, run_probe
from spatial_forcing.results import ProbeRow


def judge(
    sources: Any,
    train_depth: Any,
    test_depth: Any,
    train_episodes: Tensor,
    test_episodes: Tensor,
    images: tuple[Any, Any] = (None, None),
    **options: Any,
) -> ProbeResult:
    """``run_probe`` on frames of these."""
    train = Frames(train_depth, train_episodes, images[0])
    return run_probe(sources, train, Frames(test_depth, test_episodes, images[1]), **options)


def metrics_of(row: ProbeRow) -> DepthMetrics:
    """The metrics that a row holds."""
    return DepthMetrics(row.absrel, row.rmse_m, row.delta1, row.pixels or 0)
