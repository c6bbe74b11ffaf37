"""A LeRobot data reader that says where its image transforms moved each picture.

A class in a module of its own, so that worker processes that are started anew (spawned) find it when the
data set is handed to them.
"""

from typing import Any

from torch import Tensor

from lerobot_policy_spatial_forcing.augment import AFFINE_KEY, TrackedTransforms
from spatial_forcing.chunks import ChunkReader


class TrackingReader(ChunkReader):
    """Adds the affine of every transformed picture to its frame; see ``augment``."""

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
