"""Token grids of host and teacher: layouts, affines between their images, and resampling of features.

A host (VLA) and a teacher cut the same images into different grids of tokens: 16 x 16 against 37 x 37, say,
after the host has padded, cropped or turned its copy. Everything here rests on two ideas:

* An **affine** maps a point of the host's grid to a point of the image the teacher saw. Resizing, padding,
  cropping, flipping and rotating are all affines, and they compose by matrix product.
* **Resampling is a matrix**: each host token is a weighted mean of teacher tokens. A cell is read at s x s
  points (enough that no teacher token is skipped: that is the antialiasing), each by bilinear interpolation.
  A point that falls outside the image, or on a teacher token that is not valid, has no weight.

Coordinates are unit coordinates: (0, 0) is the top left *corner* of an image, (1, 1) its bottom right
corner, and the token in row i of H, column j of W has its centre at x = (j + 1/2) / W, y = (i + 1/2) / H
(half-pixel centres).

Shapes: B batch, V views, H W teacher rows and columns, h w host rows and columns, N = h*w, M = H*W, C
channels, A affines, S sample points per side of a cell, P all of them. Small b and v are B and V, or 1 where
all share one affine.
Affines: (..., 2, 3), rows x and y, acting on (x, y, 1).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features

# A host token counts as valid when at least this fraction of its sample points read a valid teacher token.
VALID_COVERAGE = 0.5


@dataclass(frozen=True)
class Layout:
    """Layout of a host's visual tokens: views x rows x cols, and how an image maps to that grid.

    Attributes:
        views, rows, cols: the grid, in the host's own order (view by view, row by row).
        fit: ``"stretch"`` if the host resizes the image to the grid, ``"pad"`` if it keeps the image's
            aspect ratio and pads the rest (SmolVLA, pi0: ``resize_with_pad``).
        anchor: with ``"pad"``, where the image sits in the padded rectangle, as fractions (x, y) of the
            free space: (0, 0) top left, (0.5, 0.5) centred, (1, 1) bottom right.
        overhang: (x, y), the size of the grid over that of the host's input: above one where the last cells
            reach beyond it (a convolutional host whose stride does not divide it).
        offset: from the centre of a cell to the centre of what it sees, in cells, down and right alike. Zero
            for patches. A convolution of stride s with half its width as padding sees around the first pixel
            of its cell, which makes (1 - s) / (2 s).
    """

    views: int
    rows: int
    cols: int
    fit: Literal["stretch", "pad"] = "stretch"
    anchor: tuple[float, float] = (0.5, 0.5)
    overhang: tuple[float, float] = (1.0, 1.0)
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not all(isinstance(size, Integral) for size in (self.views, self.rows, self.cols)):
            raise SpatialForcingError(f"Views, rows and columns of a layout are whole numbers, got {self}.")
        if min(self.views, self.rows, self.cols) < 1:
            raise SpatialForcingError(f"A layout needs at least one view, row and column, got {self}.")
        if self.fit not in ("stretch", "pad"):
            raise SpatialForcingError(f"A layout's fit is 'stretch' or 'pad', got {self.fit!r}.")

    @property
    def tokens(self) -> int:
        return self.views * self.rows * self.cols

    @property
    def coverage(self) -> float:
        """Least coverage of a valid token, see ``resample``. Lower with an offset: a field centred on the
        image's first pixel lies three quarters outside it."""
        return VALID_COVERAGE if self.offset == 0 else 0.15

    def affine_23(self, height: int, width: int) -> Tensor:
        """The affine (2, 3) from this grid to an image of ``height`` x ``width`` pixels."""
        (ox, oy), shift = self.overhang, self.offset
        to_input = torch.tensor([[ox, 0, ox * shift / self.cols], [0, oy, oy * shift / self.rows]])
        if self.fit == "stretch":
            return to_input
        # The image fills the fraction (fx, fy) of the host's input and starts at (1 - f) * anchor.
        input_w, input_h = self.cols / ox, self.rows / oy
        scale = min(input_w / width, input_h / height)
        fx, fy = width * scale / input_w, height * scale / input_h
        x0, y0 = (1 - fx) * self.anchor[0], (1 - fy) * self.anchor[1]
        return compose(torch.tensor([[1 / fx, 0, -x0 / fx], [0, 1 / fy, -y0 / fy]]), to_input)

    def valid_mask(self, height: int, width: int) -> Tensor:
        """bool (rows, cols): cells with their centre in a ``height`` x ``width`` image, not in padding."""
        (scale_x, _, x0), (_, scale_y, y0) = self.affine_23(height, width)
        x_w = scale_x * (torch.arange(self.cols) + 0.5) / self.cols + x0
        y_h = scale_y * (torch.arange(self.rows) + 0.5) / self.rows + y0
        inside_w, inside_h = ((at >= -1e-6) & (at <= 1 + 1e-6) for at in (x_w, y_h))
        return inside_h[:, None] & inside_w

    def draw(self) -> str:
        """Text drawing of the token grid, one row of boxes per view (for ``doctor`` and docs)."""
        box = ["+" + "-" * (2 * self.cols + 1) + "+", *["| " + "o " * self.cols + "|"] * self.rows]
        lines = ["   ".join([line] * self.views) for line in [*box, box[0]]]
        title = f"{self.views} view{'s' if self.views > 1 else ''} x {self.rows} rows x {self.cols} columns"
        return "\n".join([f"{title} = {self.tokens} visual tokens, {self.fit}", *lines])


# ---- affines -----------------------------------------------------------------------------------------------


def identity() -> Tensor:
    """The identity affine (2, 3)."""
    return torch.eye(2, 3)


def crop(x0: float, y0: float, x1: float, y1: float) -> Tensor:
    """Affine from a cropped image to the whole one; corners of the crop in unit coordinates of the whole."""
    if not (x1 > x0 and y1 > y0):
        raise SpatialForcingError(f"A crop needs x1 > x0 and y1 > y0, got ({x0}, {y0}, {x1}, {y1}).")
    return torch.tensor([[x1 - x0, 0.0, x0], [0.0, y1 - y0, y0]])


def flip() -> Tensor:
    """Affine from the horizontally flipped image to the original."""
    return torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def rotation(degrees: float, aspect: float = 1.0) -> Tensor:
    """Affine from an image rotated counter-clockwise about its centre to the original; aspect = w / h."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Turning happens in pixels, so x is stretched by the aspect ratio before and shrunk after.
    a, b = -s / aspect, s * aspect
    return torch.tensor([[c, a, 0.5 - 0.5 * c - 0.5 * a], [b, c, 0.5 - 0.5 * b - 0.5 * c]])


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Composition of affines (..., 2, 3): a point goes through ``inner`` first, then ``outer``."""
    # Not `@`: under autocast, or with TF32 on, a matrix product would round coordinates to a few bits.
    moved = (outer[..., :2, None] * inner[..., None, :, :]).sum(-2)
    return torch.cat([moved[..., :2], moved[..., 2:] + outer[..., 2:]], dim=-1)


# ---- resampling --------------------------------------------------------------------------------------------


def resample(
    features: Features,
    rows: int,
    cols: int,
    affine_BV23: Tensor | None = None,
    *,
    published: bool = False,
    coverage: float = VALID_COVERAGE,
) -> Features:
    """Resamples teacher features to a grid of ``rows`` x ``cols`` host tokens.

    Args:
        features: the teacher's grid, any size.
        rows, cols: the host's grid.
        affine_BV23: from the host's grid to the teacher's image, broadcastable to (B, V, 2, 3); identity if
            None.
        published: the public code's numerics (bilinear, corners aligned, no antialiasing). Takes no affine.
        coverage: a token is valid if at least this fraction of its sample points read valid teacher tokens.

    Returns:
        :class:`Features` of exactly ``rows`` x ``cols`` tokens, without points; those that are not valid are
        zero.
    """
    if not isinstance(features, Features):
        raise SpatialForcingError(f"resample takes Features; got {type(features).__name__}.")
    tokens_BVHWC, _ = features.checked()
    B, V, H, W, _ = tokens_BVHWC.shape
    if not isinstance(rows, Integral) or not isinstance(cols, Integral):
        raise SpatialForcingError(f"Rows and columns of a grid are whole numbers, got {rows} x {cols}.")
    if min(rows, cols, H, W) < 1:
        raise SpatialForcingError(
            f"A grid has at least one row and column; cannot carry {H} x {W} tokens to {rows} x {cols}."
        )
    if published and affine_BV23 is not None:
        raise SpatialForcingError("The published resampling knows no affine; use published=False with one.")
    # Geometry keeps its precision inside an autocast region.
    with torch.autocast(tokens_BVHWC.device.type, enabled=False):
        if published:
            weights_bvNHW = _corner_aligned_weights(H, W, rows, cols).to(tokens_BVHWC.device)
        else:
            affine_bv23 = _shaped_affine(identity() if affine_BV23 is None else affine_BV23, B, V).float()
            weights_bvNHW = _weights_of(affine_bv23, H, W, rows, cols, tokens_BVHWC.device)
        return _weighted(features, weights_bvNHW, rows, cols, coverage)


def _weighted(features: Features, weights_bvNHW: Tensor, rows: int, cols: int, coverage: float) -> Features:
    """Applies resampling weights (b, v, rows*cols, H, W) to the valid tokens."""
    tokens_BVHWC, valid_BVHW = features
    B, V, _, _, C = tokens_BVHWC.shape
    # Weights on tokens that are not valid go; what is left is scaled back to one.
    weights_BVNM = (weights_bvNHW * valid_BVHW[:, :, None]).flatten(3)
    coverage_BVN = weights_BVNM.sum(-1)
    out_valid_BVN = coverage_BVN >= coverage - 1e-6
    weights_BVNM = torch.where(
        out_valid_BVN[..., None], weights_BVNM / coverage_BVN.clamp(min=1e-6)[..., None], 0.0
    )
    # A token of weight zero must not matter even if it holds NaN, as a missing view may.
    source_BVMC = torch.where(valid_BVHW[..., None], tokens_BVHWC, 0.0).flatten(2, 3)
    out_BVNC = weights_BVNM.to(source_BVMC.dtype) @ source_BVMC
    return Features(out_BVNC.view(B, V, rows, cols, C), out_valid_BVN.view(B, V, rows, cols))


def _shaped_affine(affine: Tensor, B: int, V: int) -> Tensor:
    """Reshapes an affine that broadcasts to (B, V, 2, 3) to (b, v, 2, 3), b and v being 1 where shared."""
    b, v, *matrix = (*(1,) * (4 - affine.ndim), *affine.shape)
    if b not in (1, B) or v not in (1, V) or matrix != [2, 3]:
        raise SpatialForcingError(
            f"Expected an affine of shape (2, 3), ({V}, 2, 3) or ({B}, {V}, 2, 3) for {B} samples of {V} "
            f"views, got {tuple(affine.shape)}."
        )
    if not affine.isfinite().all():
        raise SpatialForcingError("An affine has numbers that are not finite.")
    return affine.reshape(b, v, 2, 3)


def _weights_of(affine_bv23: Tensor, H: int, W: int, h: int, w: int, device: torch.device) -> Tensor:
    """Resampling weights (b, v, h*w, H, W) on ``device``; cached for an affine that all samples share."""
    if len(affine_bv23) > 1 or affine_bv23.device.type != "cpu":
        return _cell_weights(affine_bv23.to(device), H, W, h, w)
    rows = tuple(tuple(view) for view in affine_bv23[0].flatten(1).tolist())
    return _kept_weights(rows, H, W, h, w, device)


@lru_cache(maxsize=8)
def _kept_weights(
    rows: tuple[tuple[float, ...], ...], H: int, W: int, h: int, w: int, device: torch.device
) -> Tensor:
    return _cell_weights(torch.tensor(rows).view(1, -1, 2, 3), H, W, h, w).to(device)


def _cell_weights(affine_bv23: Tensor, H: int, W: int, h: int, w: int) -> Tensor:
    """Weights (b, v, h*w, H, W) of the teacher's tokens in each host cell."""
    # The same affine from host cells to teacher tokens, so that equal grids meet in exact numbers.
    cells_bv23 = affine_bv23 * affine_bv23.new_tensor([[W / w, W / h, W], [H / w, H / h, H]])
    # How many teacher tokens one host cell spans: so many sample points per side leave none out. Less than a
    # hundredth of a token more is rounding, not a reason for another point.
    span_bv = cells_bv23[..., :2].abs().sum(-1).amax(-1)
    side_bv = (span_bv - 0.01).ceil().clamp(min=1)
    if not side_bv.max() <= 2 * max(H, W):  # nor is NaN
        raise SpatialForcingError(
            f"The affine spreads one host token over {side_bv.max():.0f} teacher tokens of a grid of {H} x "
            f"{W}. Affines are in unit coordinates, 0 to 1 from edge to edge, not in pixels."
        )
    weights_bvNHW = affine_bv23.new_empty(*side_bv.shape, h * w, H, W)
    # Every affine has its own number of points: what a sample gives must not depend on the rest of its batch.
    for side in side_bv.unique().tolist():
        chosen_bv = side_bv == side
        weights_bvNHW[chosen_bv] = _mean_over_points(cells_bv23[chosen_bv], int(side), H, W, h, w)
    return weights_bvNHW


def _mean_over_points(cells_A23: Tensor, side: int, H: int, W: int, h: int, w: int) -> Tensor:
    """Weights (A, h*w, H, W) of affines from cells to tokens, each cell sampled at side x side points."""
    sub_S = (torch.arange(side, device=cells_A23.device) + 0.5) / side
    x_wS = torch.arange(w, device=sub_S.device)[:, None] + sub_S
    y_hS = torch.arange(h, device=sub_S.device)[:, None] + sub_S
    x_P = x_wS[None, :, None, :].expand(h, w, side, side).reshape(-1)
    y_P = y_hS[:, None, :, None].expand(h, w, side, side).reshape(-1)
    point_P3 = torch.stack([x_P, y_P, torch.ones_like(x_P)], dim=-1)
    x_AP, y_AP = (cells_A23[:, :, None] * point_P3).sum(-1).unbind(1)

    edge = 1e-4  # of a token: rounding
    inside_AP = (x_AP >= -edge) & (x_AP <= W + edge) & (y_AP >= -edge) & (y_AP <= H + edge)
    points = (len(cells_A23), h * w, side**2)
    across_ANSW = (_tent(x_AP - 0.5, W) * inside_AP[..., None]).view(*points, W)
    down_ANSH = _tent(y_AP - 0.5, H).view(*points, H)
    return torch.einsum("ansh,answ->anhw", down_ANSH, across_ANSW) / side**2


def _corner_aligned_weights(H: int, W: int, h: int, w: int) -> Tensor:
    """Weights (1, 1, h*w, H, W) of bilinear interpolation with aligned corners, as in the public code."""
    down_hH = _tent(torch.linspace(0, H - 1, h), H)
    across_wW = _tent(torch.linspace(0, W - 1, w), W)
    return torch.einsum("iH,jW->ijHW", down_hH, across_wW).reshape(1, 1, h * w, H, W)


def _tent(position: Tensor, size: int) -> Tensor:
    """Linear interpolation weights (..., size) at ``position`` in tokens; the edge token extends outwards."""
    nodes = torch.arange(size, device=position.device, dtype=position.dtype)
    return (1 - (position.clamp(0, size - 1)[..., None] - nodes).abs()).clamp(min=0)
