"""Pixel teacher: the pixels of each patch as its feature, a control without any learning.

B: batch, V: views, H, W: pixels, h, w: patches.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from spatial_forcing.teachers.base import FrozenTeacher, TeacherInputError
from spatial_forcing.teachers.model import IMAGENET_MEAN, IMAGENET_STD
from spatial_forcing.teachers.record import TeacherRecord

PATCH = 14


class PixelTeacher(FrozenTeacher):
    """Teacher of raw pixels: normalised RGB values of each patch, 3 x patch x patch channels. Arguments as
    for `FrozenTeacher`."""

    def __init__(
        self, *, name: str, resolution: int | tuple[int, int], patch: int = PATCH, batch_size: int = 32
    ):
        super().__init__(
            name=name,
            width=3 * patch * patch,
            patch=patch,
            licence="Apache-2.0",
            multi_view=False,
            resolution=resolution,
            identity={"pixels": patch, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
            batch_size=batch_size,
        )
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        mean, std = (images_BV3HW.new_tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return [pixel_unshuffle((images_BV3HW - mean) / std, self.patch).movedim(2, -1)]


def load_pixels(
    record: TeacherRecord, *, resolution: int | tuple[int, int], layer: int, batch_size: int, **_: Any
) -> PixelTeacher:
    """Loads the pixel teacher of a record; weights, dtype and device are ignored.

    Raises:
        TeacherInputError: a layer other than the only one.
    """
    if layer not in (-1, 0):
        raise TeacherInputError(f"The teacher {record.name!r} has one layer, got layer {layer}.")
    return PixelTeacher(name=record.name, resolution=resolution, batch_size=batch_size)


RECORDS = (
    TeacherRecord(
        name="pixels",
        loader=load_pixels,
        licence="Apache-2.0",
        resolution=112,
        takes_weights=False,
        control=True,
        patch=PATCH,
        width=3 * PATCH**2,
        note="Control: the pixels of each patch.",
    ),
)
