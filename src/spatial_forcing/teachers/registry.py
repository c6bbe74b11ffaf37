"""Registry of teachers by name, and the lookup of a record by name or path.

Every module of this package that is not `SUPPORT` holds records of teachers in a tuple `RECORDS`; other
packages bring theirs by entry points of the group `spatial_forcing.teachers`.
"""

import os
from pathlib import Path

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.files import read_json
from spatial_forcing.registry import Records
from spatial_forcing.teachers.base import TeacherInputError
from spatial_forcing.teachers.checkpoint import FOLDER_FILES, WeightsError
from spatial_forcing.teachers.record import TeacherRecord

SUPPORT = (
    "base",
    "checkpoint",
    "da3",
    "da3_heads",
    "described",
    "estimator",
    "hf",
    "hub",
    "mapanything",
    "model",
    "model_teacher",
    "objectives",
    "record",
    "registry",
    "scene_batches",
    "speed",
    "vggt",
    "vggt_heads",
    "vggt_layers",
)
RECORDS: Records[TeacherRecord] = Records(
    "teacher", TeacherRecord, key="name", package="spatial_forcing.teachers", support=SUPPORT
)


def find_teacher(name_or_path: str | os.PathLike) -> TeacherRecord:
    """Finds the record of a teacher by name, or of the one in a local file or folder.

    Args:
        name_or_path: a name of `RECORDS`; a `.safetensors` file of this package's format; or a
            folder with a model of transformers or timm, in the layout of their Hub repositories.

    Raises:
        TeacherInputError: neither a name nor a path.
        UnknownNameError: no teacher of that name, and no such file or folder.
        WeightsError: what is there does not say what it is.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TeacherInputError(f"A teacher has a name or a path; got {name_or_path!r}.")
    name = str(name_or_path)
    if name in RECORDS:
        return RECORDS[name]
    path = Path(name).expanduser()
    if not name or not path.exists():
        raise UnknownNameError("teacher (and no file or folder)", name, RECORDS)
    if (path / "config.json").is_file():
        from spatial_forcing.teachers import hf, timm_teacher

        said = read_json(path / "config.json", error=WeightsError)
        return (timm_teacher if "architecture" in said else hf).record_of_folder(path, said)
    if path.is_dir() and not any((path / file).is_file() for file in FOLDER_FILES):
        raise WeightsError(
            f"No teacher in the folder {path}. Expected a model of transformers or timm as in their Hub "
            "repositories (config.json and model.safetensors), or of this package "
            f"({' or '.join(FOLDER_FILES)})."
        )
    from spatial_forcing.teachers.described import record_of_file

    return record_of_file(path)
