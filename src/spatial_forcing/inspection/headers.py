"""Headers of files of weights: names, dtypes and shapes of their tensors, without reading any."""

import math
from pathlib import Path
from typing import Any

from spatial_forcing.openvla.layout import INDEX, SINGLE, Entry, Found, read_header, read_weights
from spatial_forcing.teachers.checkpoint import FOLDER_FILES, Checkpoint, WeightsError

PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def headers_at(path: Path) -> Found:
    """Reads the headers of a file of weights, or of those in a folder: shards by their index, or one file.

    Files of torch.save are mapped, never unpickled into anything but tensors.
    """
    if path.is_file():
        return file_at(path)
    if not any((path / name).is_file() for name in (INDEX, SINGLE)):
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return file_at(path / name)
    return read_weights(path)


def file_at(path: Path) -> Found:
    """Reads the header of one file of weights."""
    try:
        if path.suffix == ".safetensors":
            return Found(read_header(path), (path,))
        state = _mapped(path)
    except (WeightsError, OSError) as error:
        return Found(files=(path,), problems=[str(error)])
    entries = {
        name: Entry(path, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in state.items()
    }
    return Found(entries, (path,))


def _mapped(path: Path) -> dict[str, Any]:
    checkpoint = Checkpoint(path)
    return checkpoint.read(checkpoint.shapes)


def shapes_of(found: Found) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: entry.shape for name, entry in found.entries.items()}


def facts_of(found: Found) -> dict[str, Any]:
    """Size and dtypes of weights, and the files that hold them."""
    if not found.entries:
        return {}
    dtypes = sorted({entry.dtype for entry in found.entries.values()})
    return {
        "parameters": sum(math.prod(entry.shape) for entry in found.entries.values()),
        "dtypes": dtypes,
        "files": [file.name for file in found.files],
    }
