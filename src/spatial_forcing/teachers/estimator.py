"""What a teacher's model estimates of images besides features: depth, its confidence, the cameras."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from spatial_forcing.teachers.base import digest


class Estimator:
    """A part of what a frozen model says of images, and which model that is.

    Args:
        model: in evaluation mode: images_BV3HW in [0, 1] -> what it says.
        part: of what it says the part that is wanted.
    """

    def __init__(self, model: nn.Module, part: Callable[[Any], Any]):
        self.model, self.part = model, part

    def __call__(self, images_BV3HW: Tensor) -> Any:
        return self.part(self.model(images_BV3HW))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights of the model."""
        return weights_fingerprint(self.model)


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, whatever their dtype and device: 16 hexadecimal digits."""
    return digest(model.state_dict().items())[:16]
