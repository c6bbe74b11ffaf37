"""Files of this package's format: safetensors whose metadata say what teacher they hold."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from spatial_forcing.teachers.checkpoint import Checkpoint, WeightsError
from spatial_forcing.teachers.record import TeacherRecord

METADATA_KEY = "spatial_forcing_teacher"  # in a safetensors file's metadata: what a record would say, as JSON
# Of files that name none: those of before there were several.
FIRST = "vggt"
ARCHITECTURES = ("vggt", "da3", "mapanything")


def description_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The description that a file of this package's format carries: architecture, config, licence, ...

    Raises:
        WeightsError: it carries none, or one of an architecture that is not known.
    """
    if METADATA_KEY not in checkpoint.metadata:
        raise WeightsError(
            f"{checkpoint.path} does not say what it is (no {METADATA_KEY!r} in its metadata). For "
            f'published weights give the name as well: load_teacher("vggt-1b", weights="{checkpoint.path}").'
        )
    said = {"architecture": FIRST, **json.loads(checkpoint.metadata[METADATA_KEY])}
    if said["architecture"] not in ARCHITECTURES:
        raise WeightsError(
            f"{checkpoint.path} holds a teacher of the architecture {said['architecture']!r}, which this "
            f"version does not know. Known: {', '.join(ARCHITECTURES)}."
        )
    return said


def record_of_file(path: Path) -> TeacherRecord:
    """Builds a record for a file of this package's format, or for a folder that holds one.

    Raises:
        WeightsError: it cannot be read, or does not say what it is.
    """
    said = description_of(Checkpoint(path))
    module = import_module(f"spatial_forcing.teachers.{said['architecture']}_teacher")
    return module.record_of_file(path, said)


def record_from[R: TeacherRecord](said: dict[str, Any], path: Path, kind: type[R], **more: Any) -> R:
    """A record of a kind for a file, from its description and what its architecture adds."""
    return kind(
        name=str(path),
        licence=said["licence"],
        resolution=said["config"]["img_size"],
        multi_view=said["multi_view"],
        note=said["note"],
        path=path,
        **more,
    )
