"""Tokens with depth planted in them, and the depth probe in one call."""

from typing import Any

import torch
from torch import Tensor

from spatial_forcing.probe import DepthMetrics, Frames, ProbeResult, VisualTokens, run_probe
from spatial_forcing.results import ProbeRow

# Frames, views, rows and columns of tokens, channels, and cells of depth along a side of a token.
F, V, H, W, C, K = 24, 2, 3, 4, 10, 2


def planted(seed: int = 0, frames: int = F) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a depth map on the sub-grid: linear in them, plus an offset of each cell; 0.5 to 2.5 m."""
    g = torch.Generator().manual_seed(99)
    weights, offset = torch.randn(C, K * K, generator=g) * 0.05, torch.rand(V, H * K, W * K, generator=g)
    tokens = torch.randn(frames, V, H, W, C, generator=torch.Generator().manual_seed(seed))
    linear = (tokens @ weights).view(frames, V, H, W, K, K).transpose(3, 4)
    return tokens, 1 + offset + linear.reshape(frames, V, H * K, W * K)


def whole(**sources: tuple[torch.Tensor, torch.Tensor]) -> dict[str, tuple[VisualTokens, VisualTokens]]:
    """Sources whose tokens cover their whole images."""
    return {name: (VisualTokens.whole(a), VisualTokens.whole(b)) for name, (a, b) in sources.items()}


def episodes(frames: int = F, first: int = 0) -> torch.Tensor:
    return first + torch.arange(frames) // 3


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
