"""Says which of the known checkpoints a path is, and describes it: the command ``inspect``."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.files import read_json
from spatial_forcing.inspection.cache import inspect_cache, is_cache
from spatial_forcing.inspection.headers import PICKLES, file_at, headers_at
from spatial_forcing.inspection.record import UNKNOWN, Inspection
from spatial_forcing.openvla.config import MODEL_TYPE
from spatial_forcing.openvla.inspect import CheckpointRecord, inspect_checkpoint
from spatial_forcing.openvla.layout import CONFIG, part_files, some
from spatial_forcing.probe.policies import last_checkpoint
from spatial_forcing.teachers.checkpoint import FOLDER_FILES
from spatial_forcing.teachers.registry import RECORDS as TEACHERS

LOOKED_FOR = (
    "a LeRobot policy (config.json with a 'type')",
    f"OpenVLA (config.json with model_type {MODEL_TYPE!r})",
    "a teacher of transformers or timm (config.json with a known 'model_type', or an 'architecture')",
    f"a teacher's weights ({', '.join(FOLDER_FILES)})",
    "a feature cache (manifest.json)",
)
# Levels of folders below that are looked at for a checkpoint, how many folders, and how many are named.
DEEPEST, WIDEST, MOST = 4, 500, 3


class NoPathError(SpatialForcingError):
    """There is nothing that can be read at a path."""


def inspect_path(path: str | Path, key: str | None = None) -> Inspection:
    """Describes what a path holds, and whether it would load, from headers and JSON alone.

    Args:
        path: a file or a folder.
        key: an un-normalisation key that a checkpoint of OpenVLA is to have.

    Raises:
        NoPathError: there is no such file or folder (says what lies beside it), or it may not be read.
        MissingDependencyError: what would load it is not installed. Everything else that is wrong is in the
            record.
    """
    path = Path(path).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise NoPathError(f"No file or folder can be called {str(path)[:80]!r}: {error}.") from error
    if not there:
        raise NoPathError(_no_path(path))
    try:
        found = _folder(path, key) if path.is_dir() else _file(path)
    except OSError as error:
        raise NoPathError(f"{path} cannot be read: {error.strerror or error}.") from error
    if key is not None and found.kind != "openvla":
        found.unmet.append(f"--key is for OpenVLA's statistics by data set; this is no OpenVLA: {key!r}.")
    return found


def _folder(folder: Path, key: str | None) -> Inspection:
    last = last_checkpoint(folder)
    if last not in (None, folder) and not is_cache(folder):
        found = _folder(last.resolve(), key)
        found.notes.insert(0, f"{folder} is a training run; this is its last checkpoint.")
        return found
    return _checkpoint(folder, key)


def _checkpoint(folder: Path, key: str | None) -> Inspection:
    said: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        try:
            said = read_json(folder / CONFIG, "Take it from where the checkpoint came from again.")
        except SpatialForcingError as error:
            return _unknown(folder, str(error))
    if isinstance(said.get("type"), str):
        from spatial_forcing.inspection.policy import inspect_policy

        return inspect_policy(folder, said)
    if said.get("model_type") == MODEL_TYPE or part_files(folder):
        return of_openvla(inspect_checkpoint(folder), key)
    if is_cache(folder):
        return inspect_cache(folder)
    if (folder / "meta" / "info.json").is_file():
        return _unknown(folder, "It is a LeRobotDataset, not a checkpoint: commands take it as --dataset.")
    from spatial_forcing.inspection.teacher import inspect_file, inspect_folder, says_teacher

    if says_teacher(said):
        return inspect_folder(folder, said)
    if not any((folder / name).is_file() for name in FOLDER_FILES):
        return _unknown(folder, *_said_type(said))
    return inspect_file(folder) or _unknown(folder, *headers_at(folder).problems, *_said_type(said))


def _file(path: Path) -> Inspection:
    if path.suffix != ".safetensors" and path.suffix not in PICKLES:
        what = "It is a file of no known kind: checkpoints are folders, or files of weights."
        return _unknown(path, what if path.name != CONFIG else _part_of(path))
    from spatial_forcing.inspection.teacher import inspect_file

    problems = file_at(path).problems
    if (found := None if problems else inspect_file(path)) is not None:
        return found
    if (path.parent / CONFIG).is_file():
        problems.append(_part_of(path))
    return _unknown(path, *(problems or ["Its tensors are not those of a teacher that is known."]))


def _part_of(path: Path) -> str:
    return f"It is part of a checkpoint: spatial-forcing inspect {path.parent}"


def of_openvla(record: CheckpointRecord, key: str | None) -> Inspection:
    """The record of a checkpoint of OpenVLA as an inspection.

    Args:
        record: of the checkpoint.
        key: an un-normalisation key that is to be there; None to ask for none.
    """
    facts: dict[str, Any] = dict(record.rows())
    found = Inspection(
        record.path,
        "openvla",
        record.variant,
        facts,
        missing=list(record.missing),
        foreign=list(record.foreign),
        misshaped=list(record.misshaped),
        problems=list(record.problems),
        notes=list(record.notes),
    )
    if record.config is not None:
        layers = record.config.text_config.get("num_hidden_layers", 32)
        facts["recommended site"] = f"blocks.{max(1, round(0.75 * layers))} of {layers} blocks"
    if key is not None and key not in record.keys:
        found.unmet.append(str(UnknownNameError("un-normalisation key", key, record.keys)))
    return found


# ---- nothing known


def _unknown(path: Path, *problems: str) -> Inspection:
    """An inspection of what is none of the known checkpoints."""
    found = Inspection(path, UNKNOWN, "none of the checkpoints that this package knows")
    found.facts["looked for"] = list(LOOKED_FOR)
    if path.is_dir():
        found.facts["there"] = sorted(one.name for one in path.iterdir())
        near = _below(path)
        if near:
            found.notes.append(f"Checkpoints below it: {some([str(one) for one in near], MOST)}.")
    found.problems += problems or ["Expected one of what was looked for, found none."]
    return found


def _said_type(said: dict[str, Any]) -> list[str]:
    """What a config.json says it is, where that is unknown."""
    if "model_type" not in said:
        return ["config.json says neither a 'type' nor a 'model_type'."] if said else []
    from spatial_forcing.teachers.hf import ARCHITECTURES

    known = [*ARCHITECTURES, MODEL_TYPE]
    return [str(UnknownNameError("model_type of a teacher or of OpenVLA", said["model_type"], known))]


def _below(folder: Path) -> list[Path]:
    """Folders below with a config.json or a feature cache, the newest first."""
    found: list[Path] = []
    level = [folder]
    for _ in range(DEEPEST):
        level = [one for at in level for one in _folders_in(at)][:WIDEST]
        found += [one for one in level if (one / CONFIG).is_file() or is_cache(one)]
    return sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir() and not one.is_symlink())
    except OSError:  # one that may not be read
        return []


def _no_path(path: Path) -> str:
    """Message for a path that does not exist: the last folder of it that does, and what is alike there."""
    home = next(one for one in path.absolute().parents if one.is_dir())
    name = path.absolute().relative_to(home).parts[0]
    names = sorted(one.name for one in home.iterdir())
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(str(home / one) for one in near)}?" if near else ""
    teacher = f" {path} is the name of a teacher: spatial-forcing teachers." if str(path) in TEACHERS else ""
    return f"No file or folder {path}: {home} holds {some(names, 8) or 'nothing'}.{hint}{teacher}"
