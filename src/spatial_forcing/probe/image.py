"""Depth figures: true depth, predicted depth and the errors of probes, all in the frame of the image.

Shapes: F frames, V views, H W rows and columns of pixels, h w of a depth map or a grid, C channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_atomically
from spatial_forcing.grid import identity

# Perceptually even, and safe for colour-blind readers. Near is bright; grey is "no depth".
DEPTH_COLOURS, ERROR_COLOURS, MISSING_COLOUR = "viridis_r", "magma", "0.8"
INCHES, DPI = 1.3, 150
# Pixels along the longer side of a map in the frame of an image, at least: cells end where they should.
FINE = 256


def probe_image(
    images_F3HW: Tensor,
    depth_Fhw: Tensor,
    predicted: Mapping[str, Tensor],
    path: Path,
    unit: str = "m",
    *,
    affine_F23: Tensor | None = None,
    truth: str = "true depth",
) -> Path:
    """Writes a PNG of test frames in two rows each: true depth and predictions above, image and errors below.

    Maps are drawn in the frame of the image, each cell where it lies there. All depth maps share one colour
    scale, all errors another, which ends at the 99th percentile. Where there is no true depth, all of them
    are grey: predictions there are not evaluated.

    Args:
        images_F3HW: in [0, 1].
        depth_Fhw: true depth in metres, NaN where there is none.
        predicted: depth_Fhw in metres by source.
        path: the file to write.
        unit: of the depth, for the colour bars.
        affine_F23: from the grid of the depth maps to the image, in unit coordinates; the grid covers just
            the image if None.
        truth: what the depth is called: "pseudo depth" of a model's estimate.
    """
    judged = {n: torch.where(depth_Fhw.isnan(), torch.nan, map_Fhw) for n, map_Fhw in predicted.items()}
    errors = {name: (map_Fhw - depth_Fhw).abs() for name, map_Fhw in judged.items()}
    near, far = value_range(depth_Fhw, 0.0, 1.0)
    worst = value_range(torch.stack(list(errors.values())), 0.0, 0.99)[1]
    H, W = images_F3HW.shape[-2:]
    affine_F23 = identity().expand(len(images_F3HW), 2, 3) if affine_F23 is None else affine_F23
    figure, axes = panels(2 * len(images_F3HW), 1 + len(predicted), H / W)
    for f, image_3HW in enumerate(images_F3HW):
        above, below = axes[2 * f], axes[2 * f + 1]
        at = (affine_F23[f], H, W)
        shown = draw_map(above[0], depth_Fhw[f], DEPTH_COLOURS, near, far, at)
        draw_image(below[0], image_3HW)
        above[0].set_ylabel("depth")
        below[0].set_ylabel("image | error")
        for column, name in enumerate(judged, start=1):
            draw_map(above[column], judged[name][f], DEPTH_COLOURS, near, far, at)
            wrong = draw_map(below[column], errors[name][f], ERROR_COLOURS, 0.0, worst, at)
    for axis, name in zip(axes[0], [truth, *predicted], strict=True):
        axis.set_title(name, fontsize=9)
    figure.supxlabel(f"grey: no token's cell, or no {truth} in range; not judged", fontsize=8)
    half = len(axes) // 2
    colour_bar(shown, axes[:half], f"depth ({unit})")
    colour_bar(wrong, axes[half:], f"error ({unit})", extend="max")
    return save_png(figure, path)


def panels(rows: int, columns: int, aspect: float = 1.0) -> tuple[Any, Any]:
    """A figure of small panels without ticks, ``aspect`` times as high as wide; its axes (rows, columns)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report") from error
    # Made by hand and not through pyplot, so that nobody's interactive backend or open figures are touched.
    height = INCHES * min(max(aspect, 0.65), 1.5)  # a row has a label
    size = (INCHES * columns + 0.9, (height + 0.05) * rows + 0.55)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.yaxis.label.set_fontsize(8)
    return figure, axes


def draw_image(axis: Any, image_3HW: Tensor) -> Any:
    """Draws an image; :func:`draw_map` and :func:`draw_colours` draw into the same frame."""
    return axis.imshow(image_3HW.permute(1, 2, 0).clamp(0, 1), extent=_frame(*image_3HW.shape[1:]))


def draw_map(
    axis: Any,
    map_hw: Tensor,
    colours: str,
    low: float,
    high: float,
    at: tuple[Tensor, int, int] | None = None,
) -> Any:
    """Draws a map in colours, grey where it is NaN.

    Args:
        at: affine_23, height and width of the image in whose frame it is drawn (:func:`in_image`); None if
            the map is all there is to see.
    """
    axis.set_facecolor(MISSING_COLOUR)
    look: dict[str, Any] = {"cmap": colours, "vmin": low, "vmax": high, "interpolation": "nearest"}
    if at is None:
        return axis.imshow(map_hw, **look)
    return axis.imshow(in_image(map_hw, *at), extent=_frame(*at[1:]), **look)


def draw_colours(axis: Any, rgb_hw3: Tensor, at: tuple[Tensor, int, int]) -> Any:
    """Draws a map of colours in the frame of an image, grey where they are NaN; ``at`` as in ``draw_map``."""
    rgb_HW3 = in_image(rgb_hw3, *at).nan_to_num(float(MISSING_COLOUR))
    return axis.imshow(rgb_HW3, extent=_frame(*at[1:]), interpolation="nearest")


def in_image(map_hw: Tensor, affine_23: Tensor, height: int, width: int) -> Tensor:
    """The cells of a grid in the frame of an image: each pixel has the value of the cell that it lies in.

    Args:
        map_hw: by cell, floating numbers; also map_hwC.
        affine_23: from the grid to the image, in unit coordinates (``spatial_forcing.grid``).
        height, width: of the image. The result has a whole multiple of each, :data:`FINE` pixels or more
            along the longer side.

    Returns:
        map_HW or map_HWC; NaN where there is no cell. A cell that reaches beyond the image is clipped.
    """
    times = -(-FINE // max(height, width))
    H, W = times * height, times * width
    h, w = map_hw.shape[:2]
    y_HW, x_HW = torch.meshgrid(
        (torch.arange(H).double() + 0.5) / H, (torch.arange(W).double() + 0.5) / W, indexing="ij"
    )
    turn_22, shift_2 = affine_23[:, :2].double(), affine_23[:, 2].double()
    unit_HW2 = (torch.stack([x_HW, y_HW], -1) - shift_2) @ torch.linalg.inv(turn_22).T
    cell_HW2 = unit_HW2 * unit_HW2.new_tensor([w, h])
    edge = 1e-4  # of a cell: rounding
    inside_HW = ((cell_HW2 >= -edge) & (cell_HW2 <= cell_HW2.new_tensor([w, h]) + edge)).all(-1)
    column_HW, row_HW = (cell_HW2[..., i].floor().long().clamp(0, most - 1) for i, most in enumerate((w, h)))
    found = map_hw[row_HW, column_HW]
    return torch.where(inside_HW.view(H, W, *(1,) * (found.ndim - 2)), found, torch.nan)


def _frame(height: int, width: int) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the frame of an image."""
    return 0.0, float(width), float(height), 0.0


def colour_bar(shown: Any, axes: Any, label: str, extend: str = "neither") -> None:
    """A slim bar beside a block of panels (rows, columns)."""
    bar = axes[0, 0].figure.colorbar(shown, ax=axes, aspect=10 * len(axes), extend=extend)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def value_range(values: Tensor, low: float, high: float) -> tuple[float, float]:
    """Quantiles of the values without NaN; (0, 1) if all are NaN."""
    known = values[~values.isnan()].double().numpy()
    if not known.size:
        return 0.0, 1.0
    first, last = np.quantile(known, [low, high])
    return float(first), float(max(last, first + 1e-6))


def save_png(figure: Any, path: Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
