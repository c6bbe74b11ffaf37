"""Depth figures: true depth, predicted depth and the errors of probes.

Shapes: F frames, V views, H W rows and columns of pixels, h w of a depth map.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_atomically

# Perceptually even, and safe for colour-blind readers. Near is bright; grey is "no depth".
DEPTH_COLOURS, ERROR_COLOURS, MISSING_COLOUR = "viridis_r", "magma", "0.8"
INCHES = 1.3


def probe_image(
    images_F3HW: Tensor, depth_Fhw: Tensor, predicted: Mapping[str, Tensor], path: Path, unit: str = "m"
) -> Path:
    """Writes a PNG of test frames in two rows each: true depth and predictions above, image and errors below.

    All depth maps share one colour scale, all errors another, which ends at the 99th percentile. Where
    there is no true depth, all of them are grey: predictions there are not evaluated.

    Args:
        images_F3HW: in [0, 1].
        depth_Fhw: true depth in metres, NaN where there is none.
        predicted: depth_Fhw in metres by source.
        path: the file to write.
        unit: of the depth, for the colour bars.
    """
    judged = {n: torch.where(depth_Fhw.isnan(), torch.nan, map_Fhw) for n, map_Fhw in predicted.items()}
    errors = {name: (map_Fhw - depth_Fhw).abs() for name, map_Fhw in judged.items()}
    near, far = value_range(depth_Fhw, 0.0, 1.0)
    worst = value_range(torch.stack(list(errors.values())), 0.0, 0.99)[1]
    figure, axes = panels(2 * len(images_F3HW), 1 + len(predicted))
    for f, image_3HW in enumerate(images_F3HW):
        above, below = axes[2 * f], axes[2 * f + 1]
        shown = draw_map(above[0], depth_Fhw[f], DEPTH_COLOURS, near, far)
        below[0].imshow(image_3HW.permute(1, 2, 0).clamp(0, 1))
        above[0].set_ylabel("depth")
        below[0].set_ylabel("image | error")
        for column, name in enumerate(judged, start=1):
            draw_map(above[column], judged[name][f], DEPTH_COLOURS, near, far)
            wrong = draw_map(below[column], errors[name][f], ERROR_COLOURS, 0.0, worst)
    for axis, name in zip(axes[0], ["truth", *predicted], strict=True):
        axis.set_title(name, fontsize=9)
    figure.supxlabel("grey: no true depth in range, not judged", fontsize=8)
    half = len(axes) // 2
    colour_bar(shown, axes[:half], f"depth ({unit})")
    colour_bar(wrong, axes[half:], f"error ({unit})", extend="max")
    return save_png(figure, path)


def panels(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure of small square panels without ticks, and its axes (rows, columns)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report") from error
    # Made by hand and not through pyplot, so that nobody's interactive backend or open figures are touched.
    figure = Figure(figsize=(INCHES * columns + 0.9, INCHES * rows + 0.3), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.yaxis.label.set_fontsize(8)
    return figure, axes


def draw_map(axis: Any, map_hw: Tensor, colours: str, low: float, high: float) -> Any:
    axis.set_facecolor(MISSING_COLOUR)
    return axis.imshow(map_hw, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


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
