"""Images of the data for the report.

Shapes: F frames, V views, H W rows and columns of pixels.
"""

from pathlib import Path

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR
from spatial_forcing.probe.image import DEPTH_COLOURS, colour_bar, draw_map, panels, save_png, value_range


def frame_strip(images_FV3HW: Tensor, depth_FVHW: Tensor, path: Path, far: float = FAR) -> Path:
    """Writes a PNG of some frames: a column per frame, for each view the image and its depth below.

    Args:
        images_FV3HW: in [0, 1].
        depth_FVHW: metres, any resolution; grey where it is not between 0 and ``far``.
        path: the file to write.
    """
    depth = torch.where((depth_FVHW > 0) & (depth_FVHW < far), depth_FVHW.float(), torch.nan)
    near, furthest = value_range(depth, 0.0, 1.0)
    frames, views = images_FV3HW.shape[:2]
    figure, axes = panels(2 * views, frames)
    for v in range(views):
        for f in range(frames):
            axes[2 * v, f].imshow(images_FV3HW[f, v].permute(1, 2, 0).clamp(0, 1))
            shown = draw_map(axes[2 * v + 1, f], depth[f, v], DEPTH_COLOURS, near, furthest)
        axes[2 * v, 0].set_ylabel(f"view {v + 1}")
        axes[2 * v + 1, 0].set_ylabel("depth")
    colour_bar(shown, axes, "depth (m)")
    return save_png(figure, path)
