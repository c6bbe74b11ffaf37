"""Geometry of the images in a policy's batch: cameras, sizes, crops. Pixels are not touched.

Shapes: B batch, V views.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.lerobot import present_in, record_of, shown_cameras
from spatial_forcing.hosts.prompted import PACKED_KEY, Packed
from spatial_forcing.hosts.record import PolicyRecord


class Shown(NamedTuple):
    """Cameras, sizes and crops of a batch's images, in the order of the host's visual tokens.

    They are those before the host resizes or pads the images.

    Attributes:
        cameras: the policy's name of each.
        sizes: height and width of each.
        present_BV: bool, False where a sample lacks a view; None if all are there.
        affine_BV23: from these images to those of the data set, in unit coordinates; None if they are the
            same.
        views: how many views have tokens in the sequence; those beyond ``cameras`` are missing altogether.
    """

    cameras: list[str]
    sizes: list[tuple[int, int]]
    present_BV: Tensor | None
    affine_BV23: Tensor | None
    views: int


def shown(policy: Any, batch: Mapping[str, Any]) -> Shown:
    """Cameras, sizes and crops of the images in a preprocessed batch, for a policy that has a record.

    Raises:
        SpatialForcingError: the batch has no images, or does not say how they were cropped.
    """
    record = record_of(policy)
    assert record is not None
    if record.images is not None:
        return _shown_in_prompt(policy, batch, record)
    keys = shown_cameras(policy, batch)
    sizes = [(int(batch[key].shape[-2]), int(batch[key].shape[-1])) for key in keys]
    return Shown(keys, sizes, present_in(batch, keys), None, record.views(policy.config, len(keys)))


def _shown_in_prompt(policy: Any, batch: Mapping[str, Any], record: PolicyRecord) -> Shown:
    assert record.images is not None
    images = record.images(policy, batch)
    packed = batch.get(PACKED_KEY)
    if not isinstance(packed, Packed):
        raise SpatialForcingError(
            f"The preprocessor of {record.type} packs and crops its images, and this batch does not say "
            "how, so it is not known what part of the data set's images a token sees. Call "
            "spatial_forcing.patches.track_groot_crops() before batches are preprocessed."
        )
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    return Shown(list(packed.cameras), sizes, None, packed.affine_BV23, len(images))
