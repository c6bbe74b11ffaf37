"""Sample images of the data for the report.

Shapes: F frames, V views, H W rows and columns of pixels.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR
from spatial_forcing.probe.image import DEPTH_COLOURS, colour_bar, draw_map, panels, save_png, value_range


def frame_strip(
    images: Mapping[str, Tensor], path: Path, depth: Mapping[str, Tensor] | None = None, far: float = FAR
) -> Path:
    """Writes a PNG strip of frames: a column per frame, for each camera a row of images and one of depth.

    Args:
        images: images_F3HW in [0, 1] by camera.
        path: the file to write.
        depth: depth_FHW by camera in metres, any resolution; grey where it is not between 0 and ``far``.
    """
    known = {
        camera: torch.where((of > 0) & (of < far), of.float(), torch.nan)
        for camera, of in (depth or {}).items()
    }
    maps = [of.flatten() for of in known.values()]
    near, furthest = value_range(torch.cat(maps), 0.0, 1.0) if maps else (0.0, 1.0)
    figure, axes = panels(len(images) + len(known), len(next(iter(images.values()))))
    lines, shown = iter(axes), None
    for camera, images_F3HW in images.items():
        line = next(lines)
        line[0].set_ylabel(camera.rpartition(".")[2])
        for axis, image_3HW in zip(line, images_F3HW, strict=True):
            axis.imshow(image_3HW.permute(1, 2, 0).clamp(0, 1))
        if camera in known:
            line = next(lines)
            line[0].set_ylabel("depth")
            for axis, depth_HW in zip(line, known[camera], strict=True):
                shown = draw_map(axis, depth_HW, DEPTH_COLOURS, near, furthest)
    if shown is not None:
        colour_bar(shown, axes, "depth (m)")
    return save_png(figure, path)
