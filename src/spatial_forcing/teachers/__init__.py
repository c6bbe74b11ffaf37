"""Teachers: frozen models whose patch features a policy's visual tokens are pulled towards.

    teacher = load_teacher("vggt-1b")     # from the Hub; non-commercial weights say so once
    features = teacher(images_BV3HW)      # images in [0, 1], any size; Features(tokens_BVHWC, valid_BVHW)

`RECORDS` lists the names and their licences. Anything that satisfies the `Teacher` protocol will do as well.
"""

import json
import logging
import os
import warnings
from functools import cache
from importlib import resources
from numbers import Integral
from pathlib import Path

import torch

from spatial_forcing.device import checked_device
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.files import read_json
from spatial_forcing.teachers.base import FrozenTeacher, Teacher, TeacherInputError
from spatial_forcing.teachers.checkpoint import Checkpoint, WeightsError
from spatial_forcing.teachers.hub import TeacherUnavailableError, fetch
from spatial_forcing.teachers.pixels import PixelTeacher
from spatial_forcing.teachers.records import RECORDS, TeacherRecord
from spatial_forcing.teachers.vggt import VGGT, VGGTConfig
from spatial_forcing.teachers.vggt_teacher import VGGTTeacher, load_vggt

__all__ = [
    "RECORDS",
    "FrozenTeacher",
    "Teacher",
    "TeacherInputError",
    "TeacherRecord",
    "TeacherUnavailableError",
    "VGGTTeacher",
    "WeightsError",
    "load_teacher",
]

METADATA_KEY = "spatial_forcing_teacher"  # in a safetensors file's metadata: what a record would say, as JSON
UNTRAINED_SEED = 0

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
    """A frozen teacher by name, or from a local file or folder.

    Args:
        name_or_path: a name of `RECORDS`; a `.safetensors` teacher of `recipes/vggt_tiny_sim.py`; or a
            folder with a transformers model (DINOv2, DINOv3 or SigLIP).
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
    if not isinstance(name_or_path, str | os.PathLike):
        raise TeacherInputError(f"A teacher has a name or a path; got {name_or_path!r}.")
    record = RECORDS.get(str(name_or_path))
    if record is None:
        if not Path(name_or_path).expanduser().exists():
            raise UnknownNameError("teacher (and no file or folder)", name_or_path, RECORDS)
        record, weights = _local(Path(name_or_path).expanduser(), weights), name_or_path
    folder = None if weights is None else Path(weights).expanduser()
    if folder is not None and record.family in ("pixels", "untrained"):
        raise TeacherInputError(
            f"The teacher {record.name!r} has no trained weights, got weights={str(folder)!r}. To use what "
            "is there give that path as the teacher, or name the teacher that it is."
        )
    options = {"layer": layer, "dtype": dtype, "batch_size": batch_size}
    resolution = record.resolution if resolution is None else resolution
    _show_licence(record)
    if record.family == "transformers":
        from spatial_forcing.teachers.hf import load_transformers

        return load_transformers(record, folder, resolution=resolution, device=device, **options)
    if record.family == "pixels":
        if layer not in (-1, 0):
            raise TeacherInputError(f"The teacher 'pixels' has one layer, got layer {layer}.")
        return PixelTeacher(name=record.name, resolution=resolution, batch_size=batch_size)
    model = _untrained(record) if record.family == "untrained" else _vggt(record, folder)
    return VGGTTeacher(
        model,
        name=record.name,
        licence=record.licence,
        multi_view=record.multi_view,
        resolution=resolution,
        **options,
    ).to(device)


def _vggt(record: TeacherRecord, weights: Path | None) -> VGGT:
    if weights is not None:
        checkpoint = Checkpoint(weights)
        _check_description(checkpoint, record)
    elif record.packaged:
        checkpoint = Checkpoint(_packaged(record))
    else:
        checkpoint = Checkpoint(fetch(record))
    config = record.config or VGGTConfig(**_described(checkpoint)["config"])
    return load_vggt(checkpoint, config, modules=("aggregator",))


def _untrained(record: TeacherRecord) -> VGGT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        return VGGT(record.config, modules=("aggregator",))


def _packaged(record: TeacherRecord) -> Path:
    path = Path(str(resources.files(__package__) / "weights" / str(record.packaged)))
    if not path.is_file():
        raise WeightsError(
            f"The weights of {record.name!r} are not in this installation ({path}). "
            "Train them with recipes/vggt_tiny_sim.py, or name a file with weights=."
        )
    return path


def _local(path: Path, weights: str | os.PathLike | None) -> TeacherRecord:
    """What a record would say about a file or folder given by path."""
    if weights is not None:
        raise TeacherInputError(
            f"Give either a path or a name with weights=, not the path {path} with weights=."
        )
    if path.is_dir() and (path / "config.json").is_file():
        size = read_json(path / "config.json", error=WeightsError).get("image_size", 224)
        return TeacherRecord(
            name=str(path),
            family="transformers",
            licence="unknown",
            resolution=size,
            note="Local files.",
            terms=str(path),
        )
    said = _described(Checkpoint(path))
    return TeacherRecord(
        name=str(path),
        family="vggt",
        licence=said["licence"],
        resolution=said["config"]["img_size"],
        multi_view=said["multi_view"],
        note=said["note"],
    )


def _described(checkpoint: Checkpoint) -> dict:
    """The description a teacher file of this package carries in its metadata."""
    if METADATA_KEY not in checkpoint.metadata:
        raise WeightsError(
            f"{checkpoint.path} does not say what it is (no {METADATA_KEY!r} in its metadata). For "
            f'published weights give the name as well: load_teacher("vggt-1b", weights="{checkpoint.path}").'
        )
    return json.loads(checkpoint.metadata[METADATA_KEY])


def _check_description(checkpoint: Checkpoint, record: TeacherRecord) -> None:
    """Raises `WeightsError` if a file says that it is another teacher than the one it was named as."""
    if RECORDS.get(record.name) is not record or METADATA_KEY not in checkpoint.metadata:
        return  # given by its path: it is what it says; published weights say nothing
    said = _described(checkpoint)
    if (said["note"], said["multi_view"]) == (record.described, record.multi_view):
        return
    names = [other.name for other in RECORDS.values() if other.described == said["note"]]
    is_it = f"the teacher {names[0]!r}" if names else f"another teacher ({said['note']!r})"
    instead = f'load_teacher("{names[0] if names else checkpoint.path}"'
    instead += f', weights="{checkpoint.path}")' if names else ")"
    raise WeightsError(
        f"The weights in {checkpoint.path} are those of {is_it}, not of {record.name!r}, as which they were "
        f"named. Name what they are: {instead}."
    )


@cache
def _show_licence(record: TeacherRecord) -> None:
    """Says the terms of a teacher's weights, once per process; aloud where they restrict the use."""
    message = f"Teacher {record.name}: weights under {record.licence}, see {record.terms}."
    if record.non_commercial:
        warnings.warn(f"{message} Commercial use is not allowed.", stacklevel=3)
    else:
        _log.info(message)
