"""The 3D points of a feature cache's tokens, stored beside it: ``features/points/`` is a cache of its own.

It holds for each token x, y, z (metres) and how sure they are: 1, or 0 where the point is not known.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spatial_forcing.cache.beside import extract_beside, frames_at
from spatial_forcing.cache.layout import POINTS
from spatial_forcing.cache.passes import spread
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.geometry.cameras import CameraSource, cameras_of
from spatial_forcing.geometry.metres import ByCameras, metric_depths
from spatial_forcing.geometry.points import PointSource
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths, recorded
from spatial_forcing.probe.pseudo import check_model

# Metres: where the median of what a robot's cameras see can be; and how many frames are looked at for it.
NEAREST, FARTHEST, LOOKED_AT = 0.02, 50.0, 8
# Degrees: on the embedded world vggt-tiny-sim is some 5 off, and some 140 with the cameras swapped.
TURNED = 30.0


def extract_points(dataset: Path | str, source: PointSource, root: Path, **how: Any) -> Path:
    """Stores the points of a finished cache's tokens beside it. Continues where it was interrupted.

    Args:
        dataset: a data set's folder, or its name on the Hub: the one that the features are of.
        source: of the points.
        root: folder of the features.
        how: batch_size, share, watch: see :func:`~spatial_forcing.cache.beside.extract_beside`.

    Raises:
        CacheError: there are no features, they are of another data set, or other points are there; or the
            disk is full.
        ProbeError: a depth map that does not fit its image.
    """
    return extract_beside(POINTS, dataset, source, root, **how)


def point_source(
    depth: str, frames: Any, keys: Sequence[str], calibration: Path | None, frame: str, device: str = "cpu"
) -> PointSource:
    """A source of points, checked against a data set.

    Args:
        depth: ``recorded`` or ``pseudo:<model>``.
        frames: the data set.
        keys: its cameras.
        calibration: file of the cameras; the embedded world's own if None.
        frame: of the points.
        device: where a depth model runs.

    Raises:
        ProbeError: a depth source that there is not, or recorded depth that cannot be in metres.
        CalibrationError: a camera is not calibrated, or the calibration does not fit the images.
    """
    cameras = checked_sources(depth, frames, keys, calibration)
    depths = metric_depths(depth, frames, keys, cameras, device)
    if depths.kind == "recorded":
        check_metres(depths, frames, keys)
    elif isinstance(depths.of, ByCameras):
        warn_of_turned(depths.of, frames, keys)
    return PointSource(depths, cameras, frame)


def check_metres(depths: Depths, frames: Any, keys: Sequence[str]) -> None:
    """Raises :class:`ProbeError` if the recorded depth of some frames cannot be in metres, or is unknown."""
    indices = spread(len(frames), LOOKED_AT)
    maps = depths.of(frames_at(frames, indices), keys)
    seen = torch.cat([depth_BHW[(depth_BHW > 0) & depth_BHW.isfinite()] for depth_BHW in maps])
    if not len(seen):
        raise ProbeError(
            f"The recorded depth is unknown (0, or not a number) in every pixel of the {len(indices)} frames "
            "that were looked at. Record it again, or take that of a model: --depth pseudo:<model>."
        )
    if NEAREST <= (median := float(seen.median())) <= FARTHEST:
        return
    what = (
        "It is probably in millimetres: store metres, or say depth_unit 'mm' in the info of the depth "
        "feature (meta/info.json)."
        if median > FARTHEST
        else "It was probably in metres, and taken for millimetres: see to its depth_unit (meta/info.json)."
    )
    raise ProbeError(
        f"The recorded depth is {median:.4g} m (median over {len(indices)} frames), and what a robot's "
        f"cameras see is {NEAREST:g} to {FARTHEST:g} m away. {what}"
    )


def warn_of_turned(depth: ByCameras, frames: Any, keys: Sequence[str]) -> None:
    """Warns where a model sees two cameras turned against each other quite otherwise than is calibrated: it
    may be wrong of images unlike its own, but a calibration with cameras swapped looks like that, too."""
    indices = spread(len(frames), LOOKED_AT)
    degrees_VV = depth.turned(frames_at(frames, indices), keys).median(0).values
    first, second = divmod(int(degrees_VV.argmax()), len(keys))
    if (degrees := float(degrees_VV[first, second])) > TURNED:
        logging.getLogger(__name__).warning(
            f"By the model's estimate the rotation between {keys[first]} and {keys[second]} differs from the "
            f"calibration's by {degrees:.0f} degrees (median over {len(indices)} frames). One of them is "
            "wrong: look at the calibration with spatial-forcing calibration check."
        )


def checked_sources(depth: str, frames: Any, keys: Sequence[str], calibration: Path | None) -> CameraSource:
    """The cameras of a data set, once depth and calibration of them are known to be there; loads no model.

    Raises:
        ProbeError: no depth is recorded, or a depth model that there is not.
        CalibrationError: see :func:`point_source`.
    """
    # A file that cannot be read is said first.
    named = None if calibration is None else cameras_of(calibration, frames)
    kind, _, model = depth.partition(":")
    if kind == "recorded":
        recorded(frames, keys)
    else:
        check_model(model)
    cameras = named or cameras_of(None, frames)
    cameras.check(frames.meta, keys)
    return cameras


def known_share(root: Path) -> float:
    """Share of the tokens of which stored points are known."""
    mean_C, _ = FeatureStore(root).stats or (torch.zeros(4), None)
    return mean_C[3].item()
