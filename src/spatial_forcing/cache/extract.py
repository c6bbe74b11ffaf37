"""Feature extraction: passes a LeRobotDataset through a teacher once and stores its features.

Shapes: B batch, V views, H W pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.cache.claim import check_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import CacheError, Source, dataset_fingerprint
from spatial_forcing.cache.passes import Frames
from spatial_forcing.cache.spans import Span, Spans
from spatial_forcing.cache.write import Share, Watch, check_numbers, write_features, write_layers
from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers.base import FrozenTeacher, Teacher, stack_views


@dataclass(frozen=True)
class Extraction:
    """Extraction options: cameras, codec, grid, batch size, and which frames.

    Attributes:
        cameras: camera keys in the order the policy has them; all cameras in the data set's order if None.
        codec: how tokens are stored; float16 by default.
        grid: rows and columns to pool the teacher's grid to; kept if None.
        batch_size: frames at a time.
        decoders: threads that decode images while the teacher works.
        spans: which frames, see ``spans.spans_of_episodes``; all if None. The statistics of the cache and the
            directions that a codec finds are of these alone.
    """

    cameras: Sequence[str] | None = None
    codec: CodecOptions = field(default_factory=CodecOptions)
    grid: tuple[int, int] | None = None
    batch_size: int = 32
    decoders: int = 2
    spans: Sequence[Span] | None = None


def extract(
    dataset: Path | str,
    teacher: Teacher,
    name: str,
    root: Path,
    how: Extraction | None = None,
    *,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Extracts and stores a teacher's features of a LeRobotDataset. Continues where it was interrupted.

    Args:
        dataset: a data set's folder, or its name on the Hub.
        teacher: from ``load_teacher``; the features are of the layer that it was loaded for.
        name: its registered name, recorded in the cache.
        root: folder for the features.
        how: what is stored, and how.
        share: this process's part.
        watch: callbacks for cost and progress.

    Raises:
        CacheError: the folder holds other features, or the disk is full.
        DatasetError: no such data set.
        UnknownNameError: the data set has no such camera.
    """
    how = how or Extraction()
    frames_of, source = open_source(dataset, teacher, name, how)
    return write_features(
        root,
        source,
        frames_of,
        teacher,
        options=how.codec,
        batch_size=how.batch_size,
        share=share,
        watch=watch,
    )


def extract_layers(
    dataset: Path | str,
    teacher: FrozenTeacher,
    name: str,
    root: Path,
    layers: Sequence[int],
    how: Extraction | None = None,
    *,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Extracts and stores the features of several layers in one pass, each as a cache that can be read alone.

    Layers that ``root`` holds already stay. The other arguments and errors are those of :func:`extract`.

    Args:
        layers: of the teacher, counted from 0, or from the end.

    Raises:
        NoSuchLayerError: the teacher does not have one of them.
        CacheError: a layer is named twice, or one that ``root`` holds is of something else.
    """
    how = how or Extraction()
    wanted = layer_numbers(teacher, layers)
    frames_of, source = open_source(dataset, teacher, name, how)
    check_teacher(Path(root), teacher.fingerprint_of, teacher.layers or 1)
    return write_layers(
        root,
        {n: replace(source, layer=n, teacher_fingerprint=teacher.fingerprint_of(n)) for n in wanted},
        frames_of,
        teacher.layers_of,
        options=how.codec,
        batch_size=how.batch_size,
        share=share,
        watch=watch,
    )


def layer_numbers(teacher: FrozenTeacher, layers: Sequence[int]) -> list[int]:
    """Layer numbers of a teacher, counted from 0 and sorted.

    Raises:
        NoSuchLayerError: it does not have one of them.
        CacheError: none is named, or one is named twice.
    """
    numbers = [teacher.layer_index(layer) for layer in layers]
    if not numbers or len(set(numbers)) < len(numbers):
        raise CacheError(
            f"Name at least one layer, and none twice; got {', '.join(map(str, layers)) or 'none'}."
        )
    return sorted(numbers)


def open_source(dataset: Path | str, teacher: Teacher, name: str, how: Extraction) -> tuple[Frames, Source]:
    """Opens a data set: a reader of the images of some frames, and its description; see :func:`extract`."""
    check_numbers(how.batch_size, how.grid, how.decoders)
    frames = open_dataset(dataset)
    keys = chosen_cameras(frames, how.cameras)
    rows = Spans(len(frames), how.spans)
    source = Source(
        teacher=name,
        teacher_fingerprint=teacher.fingerprint,
        teacher_licence=teacher.licence,
        dataset=dataset_fingerprint(Path(frames.root)),
        cameras=tuple(keys),
        frames=rows.frames,
        pictures=tuple(_size(frames.meta.features[key]) for key in keys),
        grid=how.grid,
        layer=getattr(teacher, "layer", None),
        layers=getattr(teacher, "layers", None),
        resolution=getattr(teacher, "resolution", None),
        dtype=str(dtype).removeprefix("torch.") if (dtype := getattr(teacher, "dtype", None)) else None,
        ordered=not isinstance(teacher, FrozenTeacher) or teacher.ordered(len(keys)),
        spans=None if how.spans is None else tuple(rows.spans),
    )
    parameter = next(iter(teacher.parameters()), None) if isinstance(teacher, torch.nn.Module) else None
    device = "cpu" if parameter is None else parameter.device
    pool = ThreadPoolExecutor(how.decoders)

    def frames_of(indices: list[int]) -> Tensor:
        decoded = list(pool.map(lambda row: _images(frames, rows.frame_of(row), keys), indices))
        views = [torch.stack([one[v] for one in decoded]) for v in range(len(keys))]
        return stack_views(views).to(device)

    return frames_of, source


def chosen_cameras(frames: Any, cameras: Sequence[str] | None) -> list[str]:
    """The camera keys to extract.

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


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a camera's images, whichever order the data set's dimensions have."""
    shape, names = feature["shape"], feature.get("names") or ["height", "width", "channels"]
    by_name = dict(zip(names, shape, strict=False))
    return int(by_name.get("height", shape[0])), int(by_name.get("width", shape[1]))


def _images(frames: Any, index: int, keys: Sequence[str]) -> list[Tensor]:
    try:
        frame = frames[index]
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders, the disk's
        raise CacheError(
            f"Frame {index} of the data set in {frames.root} cannot be read: {type(error).__name__}: "
            f"{error}. One of its files is damaged or missing."
        ) from error
    return [frame[key] for key in keys]
