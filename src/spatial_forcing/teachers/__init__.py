"""Teachers: frozen models whose patch features a policy's visual tokens are pulled towards.

    teacher = load_teacher("vggt-1b")     # from the Hub; non-commercial weights say so once
    features = teacher(images_BV3HW)      # images in [0, 1], any size; Features(tokens_BVHWC, valid_BVHW)
    by_layer = teacher.layers_of(images_BV3HW, (11, 23))   # several layers in one pass

`RECORDS` holds what is known of each by name: what loads it, its licence. Anything that satisfies the
`Teacher` protocol will do as a target as well.
"""

import logging
import os
from functools import cache
from numbers import Integral
from pathlib import Path

import torch

from spatial_forcing.device import checked_device
from spatial_forcing.teachers.base import FrozenTeacher, Teacher, TeacherInputError
from spatial_forcing.teachers.checkpoint import WeightsError
from spatial_forcing.teachers.hub import TeacherUnavailableError, is_here
from spatial_forcing.teachers.record import UNKNOWN, TeacherRecord
from spatial_forcing.teachers.registry import RECORDS, find_teacher
from spatial_forcing.teachers.speed import seconds_per_image
from spatial_forcing.teachers.vggt_teacher import VGGTTeacher

__all__ = [
    "RECORDS",
    "FrozenTeacher",
    "Teacher",
    "TeacherInputError",
    "TeacherRecord",
    "TeacherUnavailableError",
    "VGGTTeacher",
    "WeightsError",
    "find_teacher",
    "load_teacher",
]

_log = logging.getLogger(__name__)


def load_teacher(
    name_or_path: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    resolution: int | tuple[int, int] | None = None,
    layer: int = -1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> FrozenTeacher:
    """Loads a frozen teacher by name, or from a local file or folder.

    Args:
        name_or_path: see `find_teacher`.
        weights: a local file or folder to take the weights of a named teacher from, instead of the Hub. A
            file that says what it is must say what the name does.
        resolution: pixels at which the teacher sees the images: one number for a square or (height, width),
            multiples of its patch. Default: the record's (518 for VGGT-1B, as published).
        layer: which layer's tokens; negative numbers count from the last.
        dtype: of the matrix products; torch.bfloat16 halves time and memory on a GPU.
        device: where the teacher runs.
        batch_size: most scenes computed at once.

    Raises:
        UnknownNameError: no teacher of that name, and no such file or folder.
        TeacherUnavailableError: the Hub cannot be reached, or asks for terms to be accepted.
        WeightsError: the weights cannot be read, do not fit, naming the tensors, or are of another teacher.
        TeacherInputError: a resolution that is no multiple of the patch, or an option it does not have.
        IndexError: no such layer.
        DeviceError: no such device on this machine.
    """
    device = checked_device(device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TeacherInputError(
            f"The dtype is a floating torch.dtype, such as torch.bfloat16; got {dtype!r}."
        )
    if not isinstance(layer, Integral):
        raise TeacherInputError(f"The layer is a whole number, negative from the last; got {layer!r}.")
    record = find_teacher(name_or_path)
    folder = _weights(record, weights)
    _show_licence(record)
    if folder is None and not is_here(record):
        _show_speed(record, device)
    return record.load(
        weights=folder,
        resolution=record.resolution if resolution is None else resolution,
        layer=layer,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
    )


def _weights(record: TeacherRecord, weights: str | os.PathLike | None) -> Path | None:
    """Local file or folder with the weights of a teacher; None if its loader finds them."""
    if weights is None:
        return record.path
    if record.path is not None:
        raise TeacherInputError(
            f"Give either a path or a name with weights=, not the path {record.path} with weights=."
        )
    folder = Path(weights).expanduser()
    if not record.takes_weights:
        raise TeacherInputError(
            f"The teacher {record.name!r} has no trained weights, got weights={str(folder)!r}. To use what "
            "is there give that path as the teacher, or name the teacher that it is."
        )
    return folder


@cache
def _show_licence(record: TeacherRecord) -> None:
    """Shows the licence of a teacher's weights once per process, as a warning where it restricts the use."""
    size = "" if record.parameters is None else f"{record.parameters / 1e6:.3g} M parameters, "
    licence = f"weights under {record.licence}, see {record.terms}"
    if record.licence == UNKNOWN:
        licence = "of its weights no licence is said there; ask who made them"
    message = f"Teacher {record.name}: {size}{licence}."
    if record.non_commercial:
        _log.warning("%s Commercial use is not allowed.", message)
    else:
        _log.info(message)


@cache
def _show_speed(record: TeacherRecord, device: torch.device) -> None:
    """Shows once per process, before a download, how long an image will take."""
    if (least := seconds_per_image(record, device)) is not None:
        _log.info("An image of %d px will take it %.2g s or more here.", record.resolution, least)
