"""Recording for the Rerun viewer: images, true depth, each policy's predicted depth, and point clouds.

Points are of a pinhole camera with a vertical field of view of 45 degrees, which is what the embedded world's
cameras have; of other cameras the viewer shows the right order of depth in the wrong perspective.

Shapes: V views, H W pixels, h w cells of the depth map.
"""

from collections.abc import Mapping, Sequence
from math import radians, tan
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.files import write_atomically
from spatial_forcing.probe.records import ProbeReport
from spatial_forcing.probe.run import Drawn

FIELD_OF_VIEW = 45.0


def rerun_module() -> Any:
    """The Rerun SDK.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import rerun  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingDependencyError("rerun-sdk", "viewer") from error
    return rerun


def write_rrd(drawn: Mapping[str, Sequence[Drawn]], report: ProbeReport, path: Path) -> Path:
    """Writes the Rerun recording; a time step per test frame that was drawn.

    Args:
        drawn: test frames, by policy.
        report: for the cameras' names and the unit.
        path: the file to write, ``probe.rrd``.
    """
    rr = rerun_module()
    recording = rr.RecordingStream("spatial_forcing_probe")
    named = {name: frames for name, frames in drawn.items() if frames}

    def write(temporary: Path) -> None:
        recording.save(str(temporary))
        for step, frames in enumerate(zip(*named.values(), strict=True)):
            recording.set_time("frame", sequence=step)
            _log_frame(rr, recording, dict(zip(named, frames, strict=True)), report)
        recording.flush()
        recording.disconnect()

    return write_atomically(path, write)


def _log_frame(rr: Any, recording: Any, frames: Mapping[str, Drawn], report: ProbeReport) -> None:
    first = next(iter(frames.values()))
    for view, camera in enumerate(report.cameras[: len(first.images)]):
        image_HW3 = (255 * first.images[view].permute(1, 2, 0).clamp(0, 1)).byte().numpy()
        recording.log(f"{camera}/image", rr.Image(image_HW3))
        said = {"depth": first.depth_Vhw[view]} | {
            name: one.predicted_Vhw[view] for name, one in frames.items()
        }
        for name, depth_hw in said.items():
            recording.log(f"{camera}/{name}", rr.DepthImage(np.nan_to_num(depth_hw.numpy()), meter=1.0))
            points_N3, colours_N3 = points_of(depth_hw, image_HW3)
            recording.log(f"{camera}/points/{name}", rr.Points3D(points_N3, colors=colours_N3))


def points_of(depth_hw: Tensor, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coloured point cloud of a depth map in camera coordinates (x right, y down, z forward)."""
    h, w = depth_hw.shape
    rows, cols = np.mgrid[0:h, 0:w]
    slope = tan(radians(FIELD_OF_VIEW) / 2)
    z = depth_hw.numpy()
    x = z * slope * (2 * (cols + 0.5) / w - 1) * (image_HW3.shape[1] / image_HW3.shape[0])
    y = z * slope * (2 * (rows + 0.5) / h - 1)
    known = np.isfinite(z)
    at = (
        ((rows + 0.5) / h * image_HW3.shape[0]).astype(int),
        ((cols + 0.5) / w * image_HW3.shape[1]).astype(int),
    )
    return np.stack([x, y, z], -1)[known], image_HW3[at][known]
