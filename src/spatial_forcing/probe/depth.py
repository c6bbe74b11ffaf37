"""Depth maps: averaging onto a coarser grid, and error metrics.

Shapes: F frames, V views, H W rows and columns of pixels, h w rows and columns of cells.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import identity

FAR = 3.0
# A cell of the depth map counts when at least this fraction of its area has depth in range.
VALID_AREA = 0.5


class ProbeError(SpatialForcingError, ValueError):
    """Tokens, depth and episodes do not fit together, or test episodes were trained on."""


def cell_depth(
    depth_FVHW: Tensor, rows: int, cols: int, far: float = FAR, affine_FV23: Tensor | None = None
) -> Tensor:
    """Mean depth in metres over the area of each of ``rows`` x ``cols`` cells; NaN where there is none.

    A pixel counts if 0 < d < far; a cell needs such pixels on half of its area. Any resolution will do: a
    pixel that two cells share counts in each by its part.

    Args:
        affine_FV23: from the cells' grid to the image, in unit coordinates (``spatial_forcing.grid``); the
            grid covers just the image if None. Beyond the image there is no depth.

    Returns:
        depth_FVhw, float32, on the CPU.
    """
    if depth_FVHW.ndim != 4:
        raise ProbeError(
            f"Depth must have the shape (frames, views, rows, columns), got {tuple(depth_FVHW.shape)}."
        )
    depth = depth_FVHW.to("cpu", torch.float32)
    valid = (depth > 0) & (depth < far)
    area_FVhw = area_mean(valid.float(), rows, cols, affine_FV23)
    mean_FVhw = area_mean(torch.where(valid, depth, 0.0), rows, cols, affine_FV23)
    return torch.where(area_FVhw >= VALID_AREA - 1e-4, mean_FVhw / area_FVhw.clamp(min=1e-6), torch.nan)


def area_mean(map_FVHW: Tensor, rows: int, cols: int, affine_FV23: Tensor | None = None) -> Tensor:
    """Area mean of a map (F, V, ..., H, W) in each cell, with zeros outside the map.

    The affine is as for :func:`cell_depth`. Exact for resizing, padding, cropping and mirroring, in memory
    that grows with the sides of the map and not with its area, as that of ``grid.resample`` does.
    """
    if affine_FV23 is None:
        affine_FV23 = identity().expand(*map_FVHW.shape[:2], 2, 3)
    kinds_A6, kind_N = affine_FV23.reshape(-1, 6).unique(dim=0, return_inverse=True)
    kind_FV = kind_N.view(map_FVHW.shape[:2])
    cells_FVhw = map_FVHW.new_empty(*map_FVHW.shape[:-2], rows, cols)
    for kind, (scale_x, by_y, x0, by_x, scale_y, y0) in enumerate(kinds_A6.tolist()):
        if by_x or by_y:
            raise ProbeError(
                "The probe knows images that were resized, padded, cropped or mirrored, and these were "
                "turned: probe batches without image transforms."
            )
        down_hH = _area(map_FVHW.shape[-2], rows, scale_y, y0)
        across_wW = _area(map_FVHW.shape[-1], cols, scale_x, x0)
        if len(kinds_A6) == 1:
            return down_hH @ map_FVHW @ across_wW.T
        cells_FVhw[kind_FV == kind] = down_hH @ map_FVHW[kind_FV == kind] @ across_wW.T
    return cells_FVhw


def _area(pixels: int, cells: int, scale: float, start: float) -> Tensor:
    """(cells, pixels): the fraction of each cell that each pixel covers, along one side.

    Cell c of n lies from start + scale c / n to start + scale (c + 1) / n of the image.
    """
    if pixels * abs(scale) < cells * (1 - 1e-5):
        raise ProbeError(
            f"Depth of {pixels * abs(scale):.4g} pixels per side cannot fill {cells} cells: use a smaller "
            "sub_grid."
        )
    cell, pixel = torch.arange(cells).double()[:, None], torch.arange(pixels).double()
    edges = start + scale * (cell / cells), start + scale * ((cell + 1) / cells)
    low = torch.maximum(torch.minimum(*edges), pixel / pixels)
    high = torch.minimum(torch.maximum(*edges), (pixel + 1) / pixels)
    return ((high - low).clamp(min=0) * (cells / abs(scale))).float()


@dataclass(frozen=True)
class DepthMetrics:
    """Depth error metrics over all cells with depth in range (Eigen et al. 2014, arXiv 1406.2283).

    Attributes:
        absrel: mean of |p - t| / t.
        rmse_m: root of the mean of (p - t)², in metres.
        delta1: fraction with max(p / t, t / p) < 1.25.
        pixels: number of these cells.
    """

    absrel: float
    rmse_m: float
    delta1: float
    pixels: int


def metrics(predicted_FVhw: Tensor, depth_FVHW: Tensor, far: float = FAR) -> DepthMetrics:
    """Error metrics of predicted depth against true depth, in metres, without any alignment of scale.

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
    absrel, square, within = cell_errors(p, t).mean(1).tolist()
    return DepthMetrics(absrel=absrel, rmse_m=square**0.5, delta1=within, pixels=int(valid.sum()))


def cell_errors(p: Tensor, t: Tensor) -> Tensor:
    """Errors per cell (3, ...): |p - t| / t, (p - t)², and 1 where max(p / t, t / p) < 1.25."""
    return torch.stack(
        [(p - t).abs() / t, (p - t).square(), (torch.maximum(p / t, t / p) < 1.25).to(p.dtype)]
    )
