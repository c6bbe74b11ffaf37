"""The 3D point that a cell of a depth map shows: the middle of the surface at a tenth of its depths.

A mean over the whole cell would lie in the air where an object stands before a table: between the two, on
neither. What a robot reaches for is often smaller than a cell, so the nearest surface counts that covers more
than a tenth of the cell's known pixels, alone or together with what is in front of it.
Of the depths of a cell's pixels in order, d_1 <= d_2 <= ... <= d_m,

    a surface is a run of depths without a gap, d_(k+1) - d_k > 0.05 d_k, between them;
    S is the surface with the pixel that a tenth of them are nearer than;
    x is the mean over S of the pixels' points, d K^-1 (u, v, 1).

Shapes: B batch, V views, H W pixels of a depth map, h w rows and columns of cells, n pixels of a cell.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.geometry.pinhole import Pinholes, centres
from spatial_forcing.probe.depth import VALID_AREA

LEAST_SHARE = 0.1
# Of the depth: 5 cm at one metre. Rows of pixels of a table seen at a low angle are closer than that.
GAP = 0.05


def surface_points(depth_BVHW: Tensor, pinholes: Pinholes, rows: int, cols: int, far: float) -> Tensor:
    """The points that a grid of cells over each image shows.

    Args:
        depth_BVHW: metres along the viewing axis; a pixel is known where 0 < d < far.
        pinholes: the cameras.
        rows, cols: h and w.
        far: metres.

    Returns:
        points_BVhw3 in the cameras' shared frame, float32, on the CPU as the cameras are; not a number where
        less than half of the cell's pixels are known.
    """
    d_BVhwn = cells(depth_BVHW.to("cpu", torch.float32), rows, cols)
    known_BVhwn = (d_BVhwn > 0) & (d_BVhwn < far)
    d_BVhwn, order_BVhwn = torch.where(known_BVhwn, d_BVhwn, torch.inf).sort(dim=-1)
    gaps_BVhwn = d_BVhwn[..., 1:] > (1 + GAP) * d_BVhwn[..., :-1]
    surface_BVhwn = F.pad(gaps_BVhwn.cumsum(-1), (1, 0))
    known_BVhw1 = known_BVhwn.sum(-1, keepdim=True)
    S_BVhwn = surface_BVhwn == surface_BVhwn.gather(-1, (LEAST_SHARE * known_BVhw1).long())
    S_BVhwn &= d_BVhwn.isfinite()

    d_BVhwn = torch.where(S_BVhwn, d_BVhwn, 0.0)
    uv1_3HW = centres(*depth_BVHW.shape[-2:]).to(d_BVhwn).movedim(-1, 0)
    uv1_hwn3 = cells(uv1_3HW, rows, cols).movedim(0, -1)
    # In the order of the cell's pixels again.
    d_BVhwn = torch.zeros_like(d_BVhwn).scatter(-1, order_BVhwn, d_BVhwn)
    mean_BVhw3 = torch.einsum("bvhwn,hwnc->bvhwc", d_BVhwn, uv1_hwn3) / S_BVhwn.sum(-1, keepdim=True)
    seen_BVhw1 = known_BVhw1 >= VALID_AREA * d_BVhwn.shape[-1]
    return pinholes.from_image(torch.where(seen_BVhw1, mean_BVhw3, torch.nan))


def cells(map_HW: Tensor, rows: int, cols: int) -> Tensor:
    """The pixels (..., h, w, n) of each cell of a map (..., H, W).

    Where the pixels of a side are no multiple of its cells, some are repeated.
    """
    H, W = map_HW.shape[-2:]
    p, q = (-(-side // count) for side, count in ((H, rows), (W, cols)))
    if (p * rows, q * cols) != (H, W):
        map_NHW = F.interpolate(map_HW.reshape(1, -1, H, W), (p * rows, q * cols), mode="nearest-exact")
        map_HW = map_NHW.reshape(*map_HW.shape[:-2], p * rows, q * cols)
    split = map_HW.unflatten(-1, (cols, q)).unflatten(-3, (rows, p))
    return split.movedim(-2, -3).flatten(-2)
