"""Where LeRobot's image transforms moved the pictures, so that stored features move with them.

LeRobot draws the parameters of its transforms deep inside the data set and forgets them. With the teacher
online that does no harm: it sees the transformed pictures. Stored features are of the pictures as recorded,
and need the affine from one to the other. ``track_geometry()`` makes data sets add it to every frame whose
pictures they transform, under ``observation.spatial_forcing_affine.<camera>``: (2, 3), from the transformed
picture to the recorded one, in unit coordinates (see ``spatial_forcing.grid``). Neither pictures nor random
numbers change.
"""

from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import identity

AFFINE_KEY = "observation.spatial_forcing_affine."


class TrackedTransforms:
    """Image transforms that remember where they moved the last picture.

    Args:
        transforms: LeRobot's ``ImageTransforms`` or any torchvision v2 transform.

    Attributes:
        affine_23: from the last transformed picture to the one that went in.
    """

    def __init__(self, transforms: Any):
        self.transforms = transforms
        self.affine_23 = identity()
        self._drawn: list[tuple[Any, dict[str, Any]]] = []
        for leaf in _leaves(transforms):
            leaf.make_params = _Recorder(leaf, self._drawn)

    def __call__(self, image_3HW: Tensor) -> Tensor:
        self._drawn.clear()
        moved = self.transforms(image_3HW)
        self.affine_23 = _inverse_affine(self._drawn, image_3HW.shape[-2:], moved.shape[-2:])
        return moved


class _Recorder:
    """Stands for a transform's ``make_params`` and notes what it returns."""

    def __init__(self, leaf: Any, drawn: list[tuple[Any, dict[str, Any]]]):
        self.leaf, self.drawn = leaf, drawn

    def __call__(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = type(self.leaf).make_params(self.leaf, flat_inputs)
        self.drawn.append((self.leaf, params))
        return params


def _leaves(transform: Any) -> Iterator[Any]:
    """The transforms inside containers. Only torchvision's own: LeRobot's additions leave pixels in place."""
    inner = getattr(transform, "transforms", None)
    if inner is not None:
        for one in inner.values() if isinstance(inner, dict) else inner:
            yield from _leaves(one)
    elif type(transform).__module__.startswith("torchvision."):
        yield transform


def _inverse_affine(drawn: list[tuple[Any, dict[str, Any]]], before: torch.Size, after: torch.Size) -> Tensor:
    """From the picture after the drawn transforms to that before, in unit coordinates."""
    from torchvision.transforms import v2
    from torchvision.tv_tensors import KeyPoints, wrap

    (h, w), (h2, w2) = before, after
    # Three corners and the fourth as a check: what moves them otherwise than an affine cannot be followed.
    corners = torch.tensor([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]])
    flips = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)
    canvas = (int(h), int(w))
    points = KeyPoints(corners, canvas_size=canvas)  # type: ignore[call-arg]
    for leaf, params in drawn:
        points = leaf.transform(points, params)
        # torchvision mirrors key points as pixel numbers, 0 to w - 1; corners go from 0 to w.
        mirrored = torch.tensor([float(isinstance(leaf, flip)) for flip in flips])
        points = wrap(points + mirrored, like=points)  # type: ignore[call-arg]
    unit = torch.tensor([[0.0, 0.0, 1], [1, 0.0, 1], [0.0, 1, 1], [1, 1, 1]], dtype=torch.float64)
    moved = torch.as_tensor(points).double() / torch.tensor([w2, h2], dtype=torch.float64)
    forward_23 = torch.linalg.solve(unit[:3], moved[:3]).mT
    if (unit[3] @ forward_23.mT - moved[3]).abs().max() > 1e-3:
        names = ", ".join(type(leaf).__name__ for leaf, _ in drawn)
        raise SpatialForcingError(
            f"The image transforms bend pictures ({names}), which stored features cannot follow. Train with "
            "the teacher online (without forcing.cache), or leave them out of dataset.image_transforms."
        )
    square = torch.cat([forward_23, forward_23.new_tensor([[0, 0, 1]])])
    return torch.linalg.inv(square)[:2].float()


def track_geometry() -> None:
    """From now on, data sets with image transforms say where they moved each picture. Idempotent.

    LeRobot has no place to hook in: readers that are made from now on are given another class. Streaming data
    sets have no reader; with image transforms they are refused from now on.
    """
    from lerobot.datasets.dataset_reader import DatasetReader
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    from lerobot_policy_spatial_forcing.tracking_reader import TrackingReader

    plain, plain_streaming = DatasetReader.__init__, StreamingLeRobotDataset.__init__
    if hasattr(plain, "without_tracking"):
        return

    @wraps(plain)
    def tracking(reader: Any, *args: Any, **kwargs: Any) -> None:
        plain(reader, *args, **kwargs)
        reader.__class__ = TrackingReader

    def streaming(dataset: Any, *args: Any, **kwargs: Any) -> None:
        plain_streaming(dataset, *args, **kwargs)
        if dataset.image_transforms is not None:
            raise SpatialForcingError(
                "Stored features cannot follow the image transforms of a streaming data set. Train with the "
                "teacher online (without forcing.cache), or without --dataset.streaming or "
                "--dataset.image_transforms.enable."
            )

    tracking.without_tracking, streaming.without_tracking = plain, plain_streaming  # type: ignore[attr-defined]
    DatasetReader.__init__ = tracking  # type: ignore[method-assign]
    StreamingLeRobotDataset.__init__ = streaming  # type: ignore[method-assign]


def affines_of(batch: dict[str, Any], cameras: list[str]) -> Tensor | None:
    """affine_BV23 of a batch's views, None if its pictures are where they were recorded."""
    found = [batch.get(AFFINE_KEY + key) for key in cameras]
    there = [affine for affine in found if affine is not None]
    if not there:
        return None
    still = identity().to(there[0]).expand_as(there[0])
    return torch.stack([still if affine is None else affine for affine in found], dim=1)
