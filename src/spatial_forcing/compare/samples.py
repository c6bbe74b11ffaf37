"""Sample images of the training data, for the report."""

from pathlib import Path

import torch

from spatial_forcing.compare.features import dataset_of
from spatial_forcing.compare.plan import Comparison
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.results import Sample

FILE = "samples.png"
FRAMES = 4


def sample_images(comparison: Comparison, out: Path) -> list[Sample]:
    """Writes sample images of the first training episode, evenly spread, with depth where it was recorded."""
    from spatial_forcing.probe.depths import recorded
    from spatial_forcing.probe.frames import latest
    from spatial_forcing.report.images import frame_strip

    dataset, episode = dataset_of(comparison), min(comparison.split.train)
    row = dataset.meta.episodes[episode]
    first, last = int(row["dataset_from_index"]), int(row["dataset_to_index"]) - 1
    indices = torch.linspace(first, last, min(FRAMES, last - first + 1)).round().long().tolist()
    frames = torch.utils.data.default_collate([dataset[index] for index in indices])
    cameras = [key for key in dataset.meta.camera_keys if key not in dataset.meta.depth_keys]
    if not cameras:
        return []
    try:
        depth = dict(zip(cameras, recorded(dataset, cameras).of(frames, cameras), strict=True))
    except SpatialForcingError:
        depth = None
    frame_strip({camera: latest(frames[camera]) for camera in cameras}, out / FILE, depth)
    shown = "all cameras and their depth" if depth else "all cameras"
    return [Sample(path=FILE, caption=f"{len(indices)} frames of training episode {episode}, {shown}")]
