"""Base of this package's own models: VGGT, Depth Anything 3, MapAnything; and what all do with images.

B: batch, V: views of a scene, H, W: pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from spatial_forcing.teachers.base import NoSuchLayerError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Model(nn.Module):
    """A model with a trunk, whose blocks are the layers, and heads.

    Attributes:
        config: a dataclass with its sizes, ``patch`` and ``depth`` among them.
    """

    config: Any

    @abstractmethod
    def trunk(self) -> Iterable[nn.Module]:
        """The modules that the features depend on."""

    def layer_index(self, layer: int) -> int:
        """Counts negative layers from the end; raises IndexError where there is no such layer."""
        return layer_index(layer, self.config.depth)

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Runs the trunk's matrix products in `dtype`; residuals, norms and heads stay in float32."""
        self.float()
        for part in self.trunk():
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(dtype)
        return self


def check_patches(img_size: int, patch: int) -> None:
    """Raises ValueError unless an image of this side consists of whole patches."""
    if img_size % patch:
        raise ValueError(f"img_size {img_size} is not a multiple of the patch size {patch}.")


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raises ValueError unless the heads have channels for the 2D rotary embedding."""
    if embed_dim % (4 * num_heads):
        raise ValueError(
            f"embed_dim {embed_dim} over num_heads {num_heads} must be a multiple of 4: "
            "the 2D rotary embedding pairs the channels of each half of a head."
        )


def layer_index(layer: int, depth: int) -> int:
    """A layer counted from 0; raises IndexError where there is no such layer."""
    if not -depth <= layer < depth:
        raise NoSuchLayerError("this model", layer, depth)
    return layer % depth


def checked(images_BV3HW: Tensor, patch: int) -> Tensor:
    """The images; raises ValueError for a wrong shape, or sides that are no multiples of the patch."""
    shape = tuple(images_BV3HW.shape)
    if len(shape) != 5 or shape[2] != 3 or shape[1] < 1:
        raise ValueError(f"Expected images of shape (batch, views, 3, height, width), got {shape}.")
    if shape[3] % patch or shape[4] % patch or not shape[3] or not shape[4]:
        raise ValueError(f"Height and width of images must be multiples of {patch}, got {shape[3:]}.")
    return images_BV3HW


def normalised(images_BV3HW: Tensor) -> Tensor:
    """Images in [0, 1] less ImageNet's mean, over its deviation."""
    mean, std = (images_BV3HW.new_tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (images_BV3HW - mean) / std


def initialise(tokens: Iterable[Tensor], trunk: Iterable[nn.Module]) -> None:
    """Initialises learned tokens and the linear weights of modules (truncated normal, 0.02; biases zero)."""
    for token in tokens:
        nn.init.trunc_normal_(token, std=0.02)
    for part in trunk:
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
