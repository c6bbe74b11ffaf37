"""Tracking of LeRobot's image transforms, so that stored features move with the images.

LeRobot draws the parameters of its transforms deep inside the data set and forgets them. With the teacher
online that does no harm: it sees the transformed images. Stored features are of the images as recorded, and
need the affine from one to the other. :class:`TrackedTransforms` knows it; ``readers`` adds it to every frame
whose images are transformed, under ``observation.spatial_forcing_affine.<camera>``: (2, 3), from the
transformed image to the recorded one, in unit coordinates (see ``spatial_forcing.grid``). Neither images nor
random numbers change.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import identity

AFFINE_KEY = "observation.spatial_forcing_affine."
# LeRobot's own transforms, none of which moves a pixel.
STILL = {
    "CoarseDropout",
    "GammaCorrection",
    "GaussianNoise",
    "GaussianPatchBrightness",
    "JPEGCompression",
    "MotionBlur",
    "PlanckianJitter",
    "RandomShadow",
    "SharpnessJitter",
}


class TrackedTransforms:
    """Image transforms that remember the affine of the last image.

    Args:
        transforms: LeRobot's ``ImageTransforms`` or any torchvision v2 transform.

    Attributes:
        affine_23: from the last transformed image to the one that went in; NaN if a transform does not say
            what it drew, so that nobody knows.
    """

    def __init__(self, transforms: Any):
        self.transforms = transforms
        self.affine_23 = identity()
        self._drawn: list[tuple[Any, dict[str, Any]]] = []
        self._known = True
        for leaf in _leaves(transforms):
            if _asks_make_params(leaf):
                leaf.make_params = _Recorder(leaf, self._drawn)
            elif type(leaf).__name__ not in STILL:
                self._known = False

    def __call__(self, image_3HW: Tensor) -> Tensor:
        self._drawn.clear()
        moved = self.transforms(image_3HW)
        if not self._known:
            self.affine_23 = torch.full((2, 3), torch.nan)
            return moved
        self.affine_23 = _inverse_affine(self._drawn, image_3HW.shape[-2:], moved.shape[-2:])
        return moved


class _Recorder:
    """Wrapper of a transform's ``make_params`` that records its return value."""

    def __init__(self, leaf: Any, drawn: list[tuple[Any, dict[str, Any]]]):
        self.leaf, self.drawn = leaf, drawn

    def __call__(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = type(self.leaf).make_params(self.leaf, flat_inputs)
        self.drawn.append((self.leaf, params))
        return params


def _asks_make_params(leaf: Any) -> bool:
    """Whether all that a transform does to an image follows from its ``make_params``.

    Not of torchvision's that draw in a ``forward`` of their own (RandAugment, TrivialAugmentWide,
    AutoAugment, AugMix), of its first version's, or of a Lambda, which is any function.
    """
    from torchvision.transforms import v2

    if not isinstance(leaf, v2.Transform) or isinstance(leaf, v2.Lambda):
        return False
    # The second is that of all transforms that are applied with a probability.
    asking = (v2.Transform.forward, v2.RandomHorizontalFlip.forward)
    return type(leaf).__module__.startswith("torchvision.") and type(leaf).forward in asking


def _leaves(transform: Any) -> Iterator[Any]:
    """The transforms inside containers."""
    inner = getattr(transform, "transforms", None)
    if inner is not None:
        for one in inner.values() if isinstance(inner, dict) else inner:
            yield from _leaves(one)
    else:
        yield transform


def _inverse_affine(drawn: list[tuple[Any, dict[str, Any]]], before: torch.Size, after: torch.Size) -> Tensor:
    """Affine from the image after the drawn transforms to that before, in unit coordinates."""
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
            f"The image transforms bend images ({names}), which stored features cannot follow. Train with "
            "the teacher online (without forcing.cache), or leave them out of dataset.image_transforms."
        )
    square = torch.cat([forward_23, forward_23.new_tensor([[0, 0, 1]])])
    return torch.linalg.inv(square)[:2].float()


def affines_of(batch: dict[str, Any], cameras: list[str]) -> Tensor | None:
    """Affines affine_BV23 of a batch's views, None if its images are as recorded.

    Raises:
        SpatialForcingError: an affine is not known.
    """
    found = [batch.get(AFFINE_KEY + key) for key in cameras]
    there = [affine for affine in found if affine is not None]
    if not there:
        return None
    still = identity().to(there[0]).expand_as(there[0])
    affine_BV23 = torch.stack([still if affine is None else affine for affine in found], dim=1)
    if affine_BV23.isnan().any():
        raise SpatialForcingError(
            "Whether the image transforms of the data set move images is not known, so stored features "
            "cannot follow them. Known are those of torchvision.transforms.v2 (not Lambda, RandAugment, "
            "AutoAugment, TrivialAugmentWide and AugMix), and LeRobot's: "
            f"{', '.join(sorted(STILL))}. Train with the teacher online (without forcing.cache), or leave "
            "the others out."
        )
    return affine_BV23
