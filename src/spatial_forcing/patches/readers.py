"""Patched readers of LeRobot's data sets: chunks without images, and affines of image transforms.

LeRobot's trainer makes the data set before it makes the policy, and hands it to nobody. So the *class* of
LeRobot's readers is patched, where they are read and where they are sent to worker processes: a reader that
exists already becomes one of ours when it is used for the first time. Spawned workers need no patch: they
receive a reader of our class.
"""

from collections.abc import Iterator
from functools import wraps
from inspect import unwrap
from typing import Any

from lerobot.datasets.dataset_reader import DatasetReader
from torch import Tensor

from spatial_forcing.chunks import ChunkReader
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.patches.record import LeRobotChanged, Patch, lerobots, replace
from spatial_forcing.patches.transforms import AFFINE_KEY, TrackedTransforms

MODULE = "lerobot.datasets.dataset_reader"


class TrackingReader(ChunkReader):
    """Reader that adds the affine of every transformed image to its frame; see ``transforms``."""

    _tracked: TrackedTransforms | None = None

    def get_item(self, idx: Any) -> dict[str, Any]:
        """LeRobot's frame, with affine_23 of each camera if there are transforms."""
        transforms: Any = self._image_transforms
        if transforms is None:
            return super().get_item(idx)
        if self._tracked is None or self._tracked.transforms is not transforms:
            self._tracked = TrackedTransforms(transforms)
        tracked, affines = self._tracked, list[Tensor]()

        def transform(image: Tensor) -> Tensor:
            moved = tracked(image)
            affines.append(tracked.affine_23)
            return moved

        self._image_transforms = transform
        try:
            item = super().get_item(idx)
        finally:
            self._image_transforms = transforms
        cameras = [key for key in self._meta.camera_keys if key not in self._meta.depth_keys]
        return item | {AFFINE_KEY + key: affine for key, affine in zip(cameras, affines, strict=True)}


def check_chunks(patch: Patch) -> None:
    """Raises :class:`LeRobotChanged` unless chunks are read as ``ChunkReader`` expects."""
    lerobots(patch, MODULE, "DatasetReader.get_item", "self", "idx")
    lerobots(patch, MODULE, "DatasetReader._query_hf_dataset", "self", "query_indices")


def check_tracking(patch: Patch) -> None:
    """Raises :class:`LeRobotChanged` unless images are transformed as ``TrackingReader`` expects."""
    check_chunks(patch)
    for name in ("LeRobotDatasetMetadata.camera_keys", "LeRobotDatasetMetadata.depth_keys"):
        lerobots(patch, "lerobot.datasets.dataset_metadata", name)
    read = lerobots(patch, MODULE, "DatasetReader.get_item")
    lerobots(patch, MODULE, "DatasetReader.__init__", "image_transforms")
    if "_image_transforms" not in unwrap(read).__code__.co_names:
        raise LeRobotChanged(patch, f"{MODULE}.DatasetReader.get_item uses no _image_transforms")


def become(patch: Patch, ours: type, *instead_of: type) -> None:
    """Patch: readers of these classes become ``ours`` when they are first read, or sent to a process."""
    read, reduce = DatasetReader.get_item, DatasetReader.__reduce_ex__

    @wraps(read)
    def get_item(reader: Any, idx: Any) -> dict[str, Any]:
        if type(reader) in instead_of:
            reader.__class__ = ours
            return reader.get_item(idx)
        return read(reader, idx)

    def reduce_ex(reader: Any, protocol: Any) -> Any:
        if type(reader) in instead_of:
            reader.__class__ = ours
        return reduce(reader, protocol)

    replace(patch, DatasetReader, "get_item", get_item)
    replace(patch, DatasetReader, "__reduce_ex__", reduce_ex)


def refuse_streaming(patch: Patch) -> None:
    """Patch: streaming data sets with image transforms, which cannot be tracked, are refused."""
    streaming = lerobots(patch, "lerobot.datasets.streaming_dataset", "StreamingLeRobotDataset")
    lerobots(
        patch, "lerobot.datasets.streaming_dataset", "StreamingLeRobotDataset.__init__", "image_transforms"
    )
    read, reduce = streaming.__iter__, streaming.__reduce_ex__

    def check(dataset: Any) -> None:
        if dataset.image_transforms is not None:
            raise SpatialForcingError(
                "Stored features cannot follow the image transforms of a streaming data set. Train with the "
                "teacher online (without forcing.cache), or without --dataset.streaming or "
                "--dataset.image_transforms.enable."
            )

    def iterate(dataset: Any) -> Iterator[Any]:
        check(dataset)
        return read(dataset)

    def reduce_ex(dataset: Any, protocol: Any) -> Any:
        check(dataset)
        return reduce(dataset, protocol)

    replace(patch, streaming, "__iter__", iterate)
    replace(patch, streaming, "__reduce_ex__", reduce_ex)
