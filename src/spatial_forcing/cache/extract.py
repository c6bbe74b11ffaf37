"""Passes a LeRobotDataset through a teacher once and stores what it says.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import CacheError, Source, dataset_fingerprint
from spatial_forcing.cache.write import Plan, Share, check_numbers, write_features
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import Teacher
from spatial_forcing.teachers.base import stack_views


def extract(
    dataset: Path | str,
    teacher: Teacher,
    name: str,
    root: Path,
    *,
    cameras: Sequence[str] | None = None,
    options: CodecOptions | None = None,
    grid: tuple[int, int] | None = None,
    share: Share | None = None,
    batch_size: int = 32,
    decoders: int = 2,
    advance: Callable[[int], None] = lambda done: None,
    announce: Callable[[Plan], None] = lambda plan: None,
) -> Path:
    """Stores a teacher's features of every frame of a LeRobotDataset. Continues where it was interrupted.

    Args:
        dataset: a data set's folder, or its name on the Hub.
        teacher: from ``load_teacher``.
        name: its registered name, recorded in the cache.
        root: folder for the features.
        cameras: camera keys in the order the policy has them; all cameras in the data set's order if None.
        options: how to store them.
        grid: rows and columns to pool the teacher's grid to; kept if None.
        share: this process's part.
        batch_size: frames at a time.
        decoders: threads that decode pictures while the teacher works.
        advance: called with the number of frames just finished.
        announce: called once with what it will cost, before the first shard.

    Raises:
        CacheError: no such data set, the folder holds other features, or the disk is full.
        UnknownNameError: the data set has no such camera.
    """
    frames_of, source = open_source(dataset, teacher, name, cameras, grid, decoders)
    return write_features(
        root,
        source,
        frames_of,
        teacher,
        options=options,
        share=share,
        batch_size=batch_size,
        advance=advance,
        announce=announce,
    )


def open_source(
    dataset: Path | str,
    teacher: Teacher,
    name: str,
    cameras: Sequence[str] | None,
    grid: tuple[int, int] | None,
    decoders: int = 2,
) -> tuple[Callable[[list[int]], Tensor], Source]:
    """What reads the pictures of some frames, and the description of all of them; see :func:`extract`."""
    check_numbers(1, grid, decoders)
    frames = open_dataset(dataset)
    keys = chosen_cameras(frames, cameras)
    source = Source(
        teacher=name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_licence=teacher.licence,
        dataset=dataset_fingerprint(Path(frames.root)),
        cameras=tuple(keys),
        frames=len(frames),
        pictures=tuple(_size(frames.meta.features[key]) for key in keys),
        grid=grid,
        layer=getattr(teacher, "layer", None),
        layers=getattr(teacher, "layers", None),
        resolution=getattr(teacher, "resolution", None),
        dtype=str(dtype).removeprefix("torch.") if (dtype := getattr(teacher, "dtype", None)) else None,
    )
    parameter = next(iter(teacher.parameters()), None) if isinstance(teacher, torch.nn.Module) else None
    device = "cpu" if parameter is None else parameter.device
    pool = ThreadPoolExecutor(decoders)

    def frames_of(indices: list[int]) -> Tensor:
        decoded = list(pool.map(lambda i: _pictures(frames, i, keys), indices))
        views = [torch.stack([one[v] for one in decoded]) for v in range(len(keys))]
        return stack_views(views).to(device)

    return frames_of, source


def chosen_cameras(frames: Any, cameras: Sequence[str] | None) -> list[str]:
    """The camera keys to look at.

    Raises:
        UnknownNameError: the data set lacks one.
        CacheError: it has none, or one is named twice.
    """
    keys = list(cameras or (key for key in frames.meta.camera_keys if key not in frames.meta.depth_keys))
    if not keys or len(set(keys)) < len(keys):
        raise CacheError(f"Name at least one camera, and none twice; got {', '.join(keys) or 'none'}.")
    for key in keys:
        if key not in frames.meta.camera_keys:
            raise UnknownNameError("camera", key, frames.meta.camera_keys)
    return keys


def open_dataset(dataset: Path | str) -> Any:
    """A LeRobotDataset from a folder or from the Hub, pictures only.

    Raises:
        CacheError: neither a folder with a data set nor a name on the Hub that could be read.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    path = Path(dataset)
    if (path / "meta" / "info.json").is_file():
        try:
            return LeRobotDataset(f"local/{path.name}", root=path, video_backend="pyav")
        except Exception as error:
            raise CacheError(
                f"The data set in {dataset} cannot be read: {type(error).__name__}: {error}. One of its "
                "files is damaged or missing."
            ) from error
    if path.exists() or str(dataset).count("/") != 1:
        what = "is not a LeRobotDataset: it has no meta/info.json" if path.exists() else "does not exist"
        raise CacheError(f"{dataset} {what}. Give a data set's folder, or its name on the Hub (owner/name).")
    try:
        return LeRobotDataset(str(dataset), video_backend="pyav")
    except Exception as error:
        raise CacheError(
            f"{dataset} is no folder here, and could not be read from the Hub: {type(error).__name__}: "
            f"{error}"
        ) from error


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a camera, whichever way round the data set names its dimensions."""
    shape, names = feature["shape"], feature.get("names") or ["height", "width", "channels"]
    by_name = dict(zip(names, shape, strict=False))
    return int(by_name.get("height", shape[0])), int(by_name.get("width", shape[1]))


def _pictures(frames: Any, index: int, keys: Sequence[str]) -> list[Tensor]:
    try:
        frame = frames[index]
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders, the disk's
        raise CacheError(
            f"Frame {index} of the data set in {frames.root} cannot be read: {type(error).__name__}: "
            f"{error}. One of its files is damaged or missing."
        ) from error
    return [frame[key] for key in keys]
