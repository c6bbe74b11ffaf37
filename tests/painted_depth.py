"""Scenes of known depth, painted into images, and the probe's error on tokens that hold it.

Shapes: F frames, H W rows and columns of pixels.
"""

from typing import Any

import torch
from small_probe import judge
from torch import Tensor

from spatial_forcing.probe import VisualTokens

K = 2  # cells of depth along a side of a token
TRAIN, TEST = 10, 6  # frames, two an episode
NEAR, SPAN = 0.5, 2.0  # metres


def episodes(frames: int, first: int = 0) -> Tensor:
    return first + torch.arange(frames) // 2


def scene(frames: int, height: int, width: int, seed: int) -> Tensor:
    """unit_FHW: a tilted floor and two blobs, elsewhere in every frame; depth is NEAR + SPAN * unit."""
    draw = torch.Generator().manual_seed(seed)
    x_W, y_H1 = (torch.arange(width) + 0.5) / width, ((torch.arange(height) + 0.5) / height)[:, None]
    tilt_F211 = torch.rand(frames, 2, 1, 1, generator=draw)
    unit_FHW = 0.1 + 0.3 * (tilt_F211[:, 0] * x_W + tilt_F211[:, 1] * y_H1)
    for _ in range(2):
        cx, cy, size = torch.rand(3, frames, 1, 1, generator=draw)
        size = 0.15 + 0.15 * size
        unit_FHW = unit_FHW + 0.25 * torch.exp(-((x_W - cx) ** 2 + (y_H1 - cy) ** 2) / (2 * size**2))
    return unit_FHW


def painted(unit_FHW: Tensor) -> Tensor:
    """Images: depth in red, and one in green and blue, which tells them from padding."""
    return torch.stack([unit_FHW, torch.ones_like(unit_FHW), torch.ones_like(unit_FHW)], dim=1)


def errors(tokens: tuple[VisualTokens, VisualTokens], depth: Any, **options: Any) -> dict[str, float]:
    """AbsRel by row."""
    result = judge({"oracle": tokens}, *depth, episodes(TRAIN), episodes(TEST, 100), sub_grid=K, **options)
    return {row.name: row.absrel for row in result.rows}
