"""Passes a LeRobotDataset through a teacher once and stores what it says.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.cache.store import Source, dataset_fingerprint, write_features
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import Teacher


def extract(
    dataset_root: Path,
    teacher: Teacher,
    name: str,
    root: Path,
    *,
    cameras: Sequence[str] | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda done: None,
) -> Path:
    """Stores a teacher's features of every frame of a local LeRobotDataset. Continues where it was
    interrupted.

    Args:
        dataset_root: the data set's folder.
        teacher: from ``load_teacher``.
        name: its registered name, recorded in the cache.
        root: folder for the features.
        cameras: camera keys in the order the policy has them; all cameras in the data set's order if None.
        batch_size: frames at a time.
        advance: called with the number of frames just finished.

    Raises:
        CacheError: the folder holds other features, or the disk is full.
        UnknownNameError: the data set has no such camera.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"local/{Path(dataset_root).name}", root=dataset_root, video_backend="pyav")
    keys = list(cameras or dataset.meta.camera_keys)
    for key in keys:
        if key not in dataset.meta.camera_keys:
            raise UnknownNameError("camera", key, dataset.meta.camera_keys)
    source = Source(
        teacher=name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_licence=teacher.licence,
        dataset=dataset_fingerprint(Path(dataset_root)),
        cameras=tuple(keys),
        frames=len(dataset),
    )
    device = (
        next(iter(teacher.parameters()), torch.empty(0)).device if hasattr(teacher, "parameters") else "cpu"
    )

    def frames(start: int, stop: int) -> Tensor:
        return torch.stack([_views(dataset[i], keys) for i in range(start, stop)]).to(device)

    return write_features(root, source, frames, teacher, batch_size=batch_size, advance=advance)


def _views(frame: Any, keys: Sequence[str]) -> Tensor:
    return torch.stack([frame[key] for key in keys])
