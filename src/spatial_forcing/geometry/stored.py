"""The 3D points of a feature cache's tokens, stored beside it: ``features/points/`` is a cache of its own.

It has the frames, cameras and grid of the features, and for each token x, y, z (metres) and how sure they
are: 1, or 0 where the point is not known. It is written, read and verified as every cache is.

Shapes: B batch, V views, H W rows and columns of tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layers import stored_layers
from spatial_forcing.cache.layout import POINTS, CacheError, Source
from spatial_forcing.cache.spans import Spans
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import Share, Watch, write_features
from spatial_forcing.datasets import open_dataset
from spatial_forcing.geometry.cameras import cameras_of
from spatial_forcing.geometry.metres import metric_depths
from spatial_forcing.geometry.points import PointSource
from spatial_forcing.grid import Features

LICENCE = "as the data set"


def extract_points(
    dataset: Path | str,
    source: PointSource,
    root: Path,
    *,
    batch_size: int = 32,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Stores the points of a finished cache's tokens beside it. Continues where it was interrupted.

    Args:
        dataset: a data set's folder, or its name on the Hub: the one that the features are of.
        source: of the points.
        root: folder of the features.
        batch_size: frames at a time.
        share: this process's part.
        watch: callbacks for cost and progress.

    Raises:
        CacheError: there are no features, they are of another data set, or other points are there; or the
            disk is full.
        ProbeError: a depth map that does not fit its image.
    """
    frames = open_dataset(dataset)
    features = features_in(root, frames)
    of = features.source
    rows = Spans(of.frames, of.spans)
    _, height, width = features.grid[:3]

    def points_of(indices: list[int]) -> Tensor:
        batch = frames_at(frames, [rows.frame_of(row) for row in indices])
        return storable(source.points(batch, of.cameras, height, width))

    described = Source(
        teacher=source.name,
        teacher_fingerprint=source.fingerprint,
        teacher_licence=LICENCE,
        dataset=of.dataset,
        cameras=of.cameras,
        frames=of.frames,
        pictures=of.pictures,
        spans=of.spans,
    )
    return write_features(
        root / POINTS,
        described,
        points_of,
        lambda points_BVHW4: Features(points_BVHW4, torch.ones(points_BVHW4.shape[:4], dtype=torch.bool)),
        options=CodecOptions("float16"),
        batch_size=batch_size,
        share=share,
        watch=watch,
    )


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
        ProbeError: a depth source that there is not.
        CalibrationError: a camera is not calibrated, or the calibration does not fit the images.
    """
    cameras = cameras_of(calibration, frames)
    cameras.check(frames.meta, keys)
    return PointSource(metric_depths(depth, frames, keys, cameras, device), cameras, frame)


def features_in(root: Path, frames: Any) -> FeatureStore:
    """The features in a folder, of one of their layers, checked against a data set.

    Raises:
        CacheError: there are none, they are not finished, or they are of another data set.
    """
    features = FeatureStore(next(iter(stored_layers(root).values()), root))
    features.check(teacher=None, cameras=features.source.cameras, dataset_root=Path(frames.root))
    return features


def known_share(root: Path) -> float:
    """Share of the tokens of which stored points are known."""
    mean_C, _ = FeatureStore(root).stats or (torch.zeros(4), None)
    return mean_C[3].item()


def frames_at(frames: Any, indices: Sequence[int]) -> dict[str, Any]:
    """A batch of some frames of a data set.

    Raises:
        CacheError: one cannot be read.
    """
    try:
        return default_collate([frames[index] for index in indices])
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders, the disk's
        raise CacheError(
            f"Frames {indices[0]} to {indices[-1]} of the data set in {frames.root} cannot be read: "
            f"{type(error).__name__}: {error}. One of its files is damaged or missing."
        ) from error


def storable(points_BVHW3: Tensor) -> Tensor:
    """Points with their certainty, as numbers that can be stored: points_BVHW4."""
    known_BVHW1 = points_BVHW3.isfinite().all(-1, keepdim=True)
    return torch.cat([torch.where(known_BVHW1, points_BVHW3, 0.0), known_BVHW1.float()], dim=-1)
