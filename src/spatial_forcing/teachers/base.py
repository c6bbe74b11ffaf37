"""What every teacher is and does: check the images, resize them, and give patch features without gradient.

B: batch, V: views of one scene, H, W: pixels, h, w: patches, C: channels.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.grid import Features

PREPROCESSING = 1  # part of the fingerprint: raise it when the same images give a teacher other pixels
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANGE_TOLERANCE = 1e-3  # how far outside [0, 1] pixels may lie: resampling overshoots a little


class TeacherInputError(SpatialForcingError, ValueError):
    """A teacher was given images or options it cannot work with."""


class NoSuchLayerError(SpatialForcingError, IndexError):
    """A teacher was asked for a layer that it does not have."""

    def __init__(self, name: str, layer: int, layers: int):
        super().__init__(
            f"No layer {layer}: {name} has layers 0 to {layers - 1}, or -{layers} to -1 from the end."
        )


@runtime_checkable
class Teacher(Protocol):
    """A frozen model that says something about images, patch by patch.

    Attributes:
        width: channels of its features.
        patch: side of a patch in pixels.
        fingerprint: changes whenever the same images could give other features; the key of stored features.
        licence: SPDX identifier, or the name, of the terms of its weights.
        multi_view: whether the features of a view depend on the other views of its scene and their order.
    """

    width: int
    patch: int
    fingerprint: str
    licence: str
    multi_view: bool

    def __call__(self, images_BV3HW: Tensor) -> Features:
        """Features of images in [0, 1], any height and width."""
        ...


class FrozenTeacher(nn.Module):
    """Base of this package's teachers: images in, features out, never trained and never in training mode.

    Subclasses implement `tokens`. Images of any size are resized to `resolution` (bilinear, antialiased,
    half-pixel centres), in batches of at most `batch_size` scenes.

    Args:
        name: what the teacher was loaded as.
        width, patch, licence, multi_view: see `Teacher`.
        resolution: pixels, one number for a square or (height, width); multiples of the patch.
        identity: what else the features depend on (weights, layer, ...), as JSON types; for the fingerprint.
        batch_size: most scenes computed at once.

    Attributes:
        layer, layers: which layer the features are of, counted from 0, and of how many; None if there is no
            choice.
        dtype: of the matrix products.
    """

    layer: int | None = None
    layers: int | None = None
    dtype: torch.dtype = torch.float32

    def __init__(
        self,
        *,
        name: str,
        width: int,
        patch: int,
        licence: str,
        multi_view: bool,
        resolution: int | tuple[int, int],
        identity: Mapping[str, Any],
        batch_size: int = 32,
    ):
        super().__init__()
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise TeacherInputError(f"batch_size must be at least 1, got {batch_size!r}.")
        self.name, self.licence, self.batch_size = name, licence, batch_size
        self.width, self.patch, self.multi_view = width, patch, multi_view
        self.resolution = checked_resolution(resolution, patch)
        whole = {
            **identity,
            "resolution": self.resolution,
            "multi_view": multi_view,
            "preprocessing": PREPROCESSING,
        }
        self.fingerprint = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    @abstractmethod
    def tokens(self, images_BV3HW: Tensor) -> Tensor:
        """Patch tokens_BVhwC in float32 of images in [0, 1] at the teacher's own resolution."""

    @torch.no_grad()
    def forward(self, images_BV3HW: Tensor) -> Features:
        """Features of images_BV3HW: floating point, RGB in [0, 1], any height and width, on any device.

        Returns:
            tokens_BVhwC (float32) on the device of the images; every token is valid.

        Raises:
            TeacherInputError: if the images have the wrong shape, dtype or range.
        """
        check_images(images_BV3HW)
        parameter = next(self.parameters(), images_BV3HW)
        chunks = []
        for chunk_BV3HW in images_BV3HW.split(self.batch_size):
            resized_BV3HW = resize(chunk_BV3HW.to(parameter.device, torch.float32), self.resolution)
            if self.multi_view:
                tokens_BVhwC = self.tokens(resized_BV3HW)
            else:
                single_B13HW = resized_BV3HW.flatten(0, 1)[:, None]
                tokens_BVhwC = self.tokens(single_B13HW)[:, 0].unflatten(0, resized_BV3HW.shape[:2])
            chunks.append(tokens_BVhwC.float().to(images_BV3HW.device))
        tokens_BVhwC = torch.cat(chunks)
        return Features(tokens_BVhwC, torch.ones_like(tokens_BVhwC[..., 0], dtype=torch.bool))

    def freeze(self) -> Self:
        """No gradients, evaluation mode."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever the mode of the model around it."""
        return super().train(False)

    def __repr__(self) -> str:
        (height, width), patch = self.resolution, self.patch
        return (
            f"{type(self).__name__}({self.name!r}: {height} x {width} px -> "
            f"{height // patch} x {width // patch} tokens, width {self.width}, "
            f"licence {self.licence}, fingerprint {self.fingerprint})"
        )


def named_dtype(name: str | None) -> torch.dtype:
    """The dtype of a name in `DTYPES`, float32 if None; raises `UnknownNameError` for another."""
    if name is not None and name not in DTYPES:
        raise UnknownNameError("dtype of a teacher", name, DTYPES)
    return DTYPES[name or "float32"]


def checked_resolution(resolution: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Height and width in pixels; raises `TeacherInputError` unless both are multiples of the patch."""
    sides = resolution if isinstance(resolution, tuple | list) else (resolution, resolution)
    if len(sides) != 2 or not all(isinstance(side, Integral) for side in sides):
        raise TeacherInputError(
            f"A resolution is a number of pixels, or (height, width); got {resolution!r}."
        )
    height, width = sides
    for side in (height, width):
        if side < patch or side % patch:
            below = max(side // patch, 1) * patch
            raise TeacherInputError(
                f"The resolution {height} x {width} must be a multiple of the teacher's patch, {patch} px: "
                f"take {below} or {below + patch} instead of {side}."
            )
    return height, width


def check_images(images_BV3HW: Tensor) -> None:
    """Raises `TeacherInputError` unless the images are floating point (B, V, 3, H, W) in [0, 1]."""
    expected = "Expected images of shape (batch, views, 3, height, width), floating point in [0, 1]"
    if not isinstance(images_BV3HW, Tensor):
        raise TeacherInputError(f"{expected}; got {type(images_BV3HW).__name__}.")
    shape = tuple(images_BV3HW.shape)
    if len(shape) != 5 or 0 in shape:
        raise TeacherInputError(f"{expected}; got shape {shape}.")
    if shape[2] != 3:
        hint = "; move the channels before height and width" if shape[-1] == 3 else ""
        raise TeacherInputError(f"{expected}; got shape {shape}, with {shape[2]} channels{hint}.")
    if not images_BV3HW.is_floating_point():
        hint = "; divide by 255" if images_BV3HW.dtype == torch.uint8 else ""
        raise TeacherInputError(f"{expected}; got {images_BV3HW.dtype}{hint}.")
    low, high = (x.item() for x in images_BV3HW.detach().aminmax())
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise TeacherInputError(
            f"{expected}; got values from {low:.4g} to {high:.4g}. Give the images before any normalisation: "
            "mean and standard deviation are applied inside the teacher."
        )


def resize(images_BV3HW: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased, half-pixel centred resampling to `resolution` (height, width)."""
    if tuple(images_BV3HW.shape[-2:]) == resolution:
        return images_BV3HW
    flat_B3HW = F.interpolate(images_BV3HW.flatten(0, 1), size=resolution, mode="bilinear", antialias=True)
    return flat_B3HW.unflatten(0, images_BV3HW.shape[:2])


def stack_views(views: Sequence[Tensor]) -> Tensor:
    """B3HW pictures of several cameras as images_BV3HW, the smaller ones stretched to the largest height and
    width. Teachers resize anyway; an affine in unit coordinates does not notice."""
    height, width = (max(view.shape[side] for view in views) for side in (-2, -1))
    same = [
        view
        if view.shape[-2:] == (height, width)
        else F.interpolate(view, size=(height, width), mode="bilinear", antialias=True)
        for view in views
    ]
    return torch.stack(same, dim=1)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors: names, shapes and float32 values, independent of their order and dtype."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()
