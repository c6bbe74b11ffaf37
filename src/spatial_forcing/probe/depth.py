"""Depth maps: averaging them onto a coarser grid, and comparing two of them.

Shapes: F frames, V views, H W rows and columns of pixels, h w rows and columns of cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError

FAR = 3.0
# A cell of the depth map counts when at least this fraction of its area has depth in range.
VALID_AREA = 0.5


class ProbeError(SpatialForcingError, ValueError):
    """Tokens, depth and episodes do not fit together, or test episodes were trained on."""


def cell_depth(depth_FVHW: Tensor, rows: int, cols: int, far: float = FAR) -> Tensor:
    """Depth in metres averaged over the area of each of ``rows`` x ``cols`` cells; NaN where there is none.

    A pixel counts if 0 < d < far; a cell needs such pixels on half of its area. Any resolution will do: a
    pixel that two cells share counts in each by its part.

    Returns:
        depth_FVhw, float32, on the CPU.
    """
    if depth_FVHW.ndim != 4:
        raise ProbeError(
            f"Depth must have the shape (frames, views, rows, columns), got {tuple(depth_FVHW.shape)}."
        )
    depth = depth_FVHW.to("cpu", torch.float32)
    valid = (depth > 0) & (depth < far)
    down_hH, across_wW = _area(depth.shape[2], rows), _area(depth.shape[3], cols)
    area_FVhw = down_hH @ valid.float() @ across_wW.T
    sum_FVhw = down_hH @ torch.where(valid, depth, 0.0) @ across_wW.T
    return torch.where(area_FVhw >= VALID_AREA - 1e-4, sum_FVhw / area_FVhw.clamp(min=1e-6), torch.nan)


def _area(pixels: int, cells: int) -> Tensor:
    """(cells, pixels): the fraction of each cell that each pixel covers, along one side; rows sum to 1."""
    if pixels < cells:
        raise ProbeError(
            f"Depth of {pixels} pixels a side cannot fill {cells} cells: use a smaller sub_grid."
        )
    cell, pixel = torch.arange(cells).double()[:, None], torch.arange(pixels).double()
    low = torch.maximum(cell / cells, pixel / pixels)
    high = torch.minimum((cell + 1) / cells, (pixel + 1) / pixels)
    return ((high - low).clamp(min=0) * cells).float()


@dataclass(frozen=True)
class DepthMetrics:
    """How well depth was predicted, over all cells with depth in range (Eigen et al. 2014, arXiv 1406.2283).

    Attributes:
        absrel: mean of |p - t| / t.
        rmse_m: root of the mean of (p - t)², in metres.
        delta1: fraction with max(p / t, t / p) < 1.25.
        pixels: how many cells that was.
    """

    absrel: float
    rmse_m: float
    delta1: float
    pixels: int


def metrics(predicted_FVhw: Tensor, depth_FVHW: Tensor, far: float = FAR) -> DepthMetrics:
    """Compares predicted depth with true depth, both in metres, without any alignment of scale.

    Args:
        predicted_FVhw: above zero.
        depth_FVHW: true depth at this resolution or a higher one; averaged over the prediction's cells.
        far: cells without depth between 0 and ``far`` are left out.

    Raises:
        ProbeError: frames or views differ, no cell is in range, or a prediction is not above zero.
    """
    if predicted_FVhw.ndim != 4 or predicted_FVhw.shape[:2] != depth_FVHW.shape[:2]:
        shapes = f"{tuple(predicted_FVhw.shape)} and {tuple(depth_FVHW.shape)}"
        raise ProbeError(
            f"Predicted and true depth must be (F, V, rows, columns) of the same F, V; got {shapes}."
        )
    true = cell_depth(depth_FVHW, predicted_FVhw.shape[2], predicted_FVhw.shape[3], far)
    valid = ~true.isnan()
    if not valid.any():
        raise ProbeError(f"No cell has depth between 0 and {far} m: is the depth in metres?")
    p, t = predicted_FVhw.cpu()[valid].double(), true[valid].double()
    if not (p > 0).all():
        raise ProbeError("Predicted depth must be above zero: some of it is not, or is NaN.")
    return DepthMetrics(
        absrel=float(((p - t).abs() / t).mean()),
        rmse_m=float((p - t).square().mean().sqrt()),
        delta1=float((torch.maximum(p / t, t / p) < 1.25).double().mean()),
        pixels=int(valid.sum()),
    )
