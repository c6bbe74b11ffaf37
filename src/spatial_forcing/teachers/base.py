"""Base of all teachers: validates images, resizes them, and computes patch features without gradient.

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
from spatial_forcing.features import Features

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
    """Protocol of a teacher: a frozen model that maps images to patch features.

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
    """Base class of teachers: a frozen module from images to patch features, always in evaluation mode.

    Subclasses implement `tokens` and, where there is a choice of layers, set `layer` and `layers`. Images of
    any size are resized to `resolution` (bilinear, antialiased, half-pixel centres), in batches of at most
    `batch_size` scenes.

    Args:
        name: what the teacher was loaded as.
        width, patch, licence, multi_view: see `Teacher`.
        resolution: pixels, one number for a square or (height, width); multiples of the patch.
        identity: what else the features depend on (weights, ...; the layer as "layer" where there is a
            choice), as JSON types; for the fingerprint.
        batch_size: most scenes computed at once.

    Attributes:
        layer, layers: which layer `teacher(images)` is of, counted from 0, and of how many; None if there is
            no choice, which counts as layer 0 of one.
        dtype: of the matrix products.
        hidden, stats, image_sizes: as of a ``Target``; a model says none of them.
    """

    layer: int | None = None
    layers: int | None = None
    dtype: torch.dtype = torch.float32
    hidden: int | None = None
    stats: tuple[Tensor, Tensor] | None = None
    image_sizes: Sequence[tuple[int, int]] | None = None

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
        self.identity = {
            **identity,
            "resolution": self.resolution,
            "multi_view": multi_view,
            "preprocessing": PREPROCESSING,
        }
        self.fingerprint = _short_digest(self.identity)

    @abstractmethod
    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> Sequence[Tensor]:
        """Patch tokens_BVhwC of images in [0, 1] at the teacher's own resolution, one for each layer.

        Args:
            images_BV3HW: float32 on the teacher's device; one view a scene unless `multi_view`.
            layers: at least one, counted from 0, ascending; (0,) where there is no choice.
        """

    def ordered(self, views: int) -> bool:
        """Whether the features of so many views of a scene depend on their order."""
        return self.multi_view and views > 1

    def forward(self, images_BV3HW: Tensor) -> Features:
        """Features of the layer that the teacher was loaded for; see `layers_of`."""
        layer = self.layer or 0
        return self.layers_of(images_BV3HW, (layer,))[layer]

    @torch.no_grad()
    def layers_of(self, images_BV3HW: Tensor, layers: Sequence[int]) -> dict[int, Features]:
        """Features of several layers, from one pass over the images; each is what a pass for it alone gives.

        Args:
            images_BV3HW: floating point, RGB in [0, 1], any height and width, on any device.
            layers: at least one, counted from 0, or from the end as -1, -2, ...

        Returns:
            For each layer, under the number asked for, tokens_BVhwC (float32) on the device of the images;
            every token is valid.

        Raises:
            TeacherInputError: if the images have the wrong shape, dtype or range, or no layer is named.
            NoSuchLayerError: the teacher does not have a layer.
        """
        check_images(images_BV3HW)
        index = {layer: self.layer_index(layer) for layer in layers}
        if not index:
            raise TeacherInputError("Name at least one layer; got none.")
        wanted = tuple(sorted(set(index.values())))
        parameter = next(self.parameters(), images_BV3HW)
        chunks: list[list[Tensor]] = [[] for _ in wanted]
        for chunk_BV3HW in images_BV3HW.split(self.batch_size):
            resized_BV3HW = resize(chunk_BV3HW.to(parameter.device, torch.float32), self.resolution)
            for kept, tokens_BVhwC in zip(chunks, self._scenes(resized_BV3HW, wanted), strict=True):
                kept.append(tokens_BVhwC.float().to(images_BV3HW.device))
        found = {layer: _all_valid(torch.cat(kept)) for layer, kept in zip(wanted, chunks, strict=True)}
        return {layer: found[at] for layer, at in index.items()}

    def _scenes(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> Sequence[Tensor]:
        """Computes tokens_BVhwC of each layer, view by view where the views do not attend to each other."""
        if self.multi_view:
            return self.tokens(images_BV3HW, layers)
        single_B13HW = images_BV3HW.flatten(0, 1)[:, None]
        return [of[:, 0].unflatten(0, images_BV3HW.shape[:2]) for of in self.tokens(single_B13HW, layers)]

    def layer_index(self, layer: int) -> int:
        """A layer counted from 0; raises `NoSuchLayerError`, or `TeacherInputError` if it is no integer."""
        if not isinstance(layer, Integral):
            raise TeacherInputError(f"A layer is a whole number, negative from the last; got {layer!r}.")
        count = self.layers or 1
        if not -count <= layer < count:
            raise NoSuchLayerError(self.name, int(layer), count)
        return int(layer) % count

    def fingerprint_of(self, layer: int) -> str:
        """The fingerprint that this teacher has when it is loaded for another layer."""
        at = self.layer_index(layer)
        return self.fingerprint if self.layer is None else _short_digest({**self.identity, "layer": at})

    def freeze(self) -> Self:
        """Turns gradients off and sets evaluation mode."""
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


def _all_valid(tokens_BVhwC: Tensor) -> Features:
    return Features(tokens_BVhwC, torch.ones_like(tokens_BVhwC[..., 0], dtype=torch.bool))


def _short_digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def named_dtype(name: str | None) -> torch.dtype:
    """Looks up a dtype by name in `DTYPES`, float32 if None; raises `UnknownNameError` for another."""
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
    """Stacks B3HW images of several cameras to images_BV3HW, the smaller ones stretched to the largest height
    and width. Teachers resize anyway, and affines in unit coordinates do not change."""
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
