"""A teacher on disk: which one it is, its licence, its sizes, and whether its tensors are those of the model.

Files of this package's format and folders of timm and transformers say what they are. Published weights of
VGGT, Depth Anything 3 and MapAnything do not: they are recognised by names and shapes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError, UnknownNameError
from spatial_forcing.inspection.headers import facts_of, headers_at, shapes_of
from spatial_forcing.inspection.record import Inspection
from spatial_forcing.openvla.layout import Found, some
from spatial_forcing.teachers import RECORDS, hf, timm_teacher
from spatial_forcing.teachers.base import checked_resolution
from spatial_forcing.teachers.checkpoint import Blank, Checkpoint, WeightsError, differences
from spatial_forcing.teachers.da3 import DA3Config
from spatial_forcing.teachers.da3_teacher import blank_da3
from spatial_forcing.teachers.described import METADATA_KEY, description_of, record_of_file
from spatial_forcing.teachers.mapanything import MapAnythingConfig
from spatial_forcing.teachers.mapanything_teacher import blank_mapanything
from spatial_forcing.teachers.record import TeacherRecord
from spatial_forcing.teachers.vggt import VGGTConfig
from spatial_forcing.teachers.vggt_teacher import blank_vggt

Shapes = Mapping[str, tuple[int, ...]]


class Family(NamedTuple):
    """Teachers that share a model of this package.

    Attributes:
        config: class of its sizes.
        blank: builds it without weights.
        trunk: the modules that features need.
        mark: how names begin in all files of its weights, and in no other family's.
    """

    config: type
    blank: Callable[..., Blank]
    trunk: tuple[str, ...]
    mark: str


# By what a file of this package's format calls them.
FAMILIES = {
    "vggt": Family(VGGTConfig, blank_vggt, ("aggregator",), "aggregator."),
    "da3": Family(DA3Config, blank_da3, ("backbone",), "model.backbone."),
    "mapanything": Family(MapAnythingConfig, blank_mapanything, ("trunk",), "info_sharing."),
}


class Sizes(NamedTuple):
    """Sizes of a teacher: number of layers, side of a patch in pixels, width of its features."""

    layers: int
    patch: int
    width: int


def says_teacher(said: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of a teacher of timm or transformers."""
    return "architecture" in said or str(said.get("model_type")) in hf.ARCHITECTURES


def inspect_folder(folder: Path, said: Mapping[str, Any]) -> Inspection:
    """Describes a folder in the layout of timm's or transformers' Hub repositories.

    Args:
        folder: with the model.
        said: content of its config.json.
    """
    of_timm = "architecture" in said
    library, kind = ("timm", said["architecture"]) if of_timm else ("transformers", said["model_type"])
    found = Inspection(folder, "teacher", f"teacher: {kind} of {library}")
    weights = headers_at(folder)
    _add_files(found, weights)
    try:
        record = (timm_teacher if of_timm else hf).record_of_folder(folder, dict(said))
        model, sizes = (_timm_model if of_timm else _transformers_model)(folder)
        _add_record(found, record, sizes)
        checked_resolution(record.resolution, sizes.patch)
    except MissingDependencyError:
        raise
    except Exception as error:  # of the libraries, which refuse configurations in many ways
        found.problems.append(f"{library} cannot build the model of config.json: {error}")
        return found
    if weights.problems:
        return found
    shapes = shapes_of(weights) if of_timm else _converted(model, shapes_of(weights))
    differing = differences(shapes, Blank(model).expected)
    if not of_timm and differing.foreign:  # of the whole of SigLIP the image half is read
        found.notes.append(f"{len(differing.foreign)} tensors are not read: {some(differing.foreign)}.")
        differing = differing._replace(foreign=[])
    found.differ(differing)
    return found


def inspect_file(path: Path) -> Inspection | None:
    """Describes a file of this package's format, or published weights; None if it is neither."""
    weights = headers_at(path)
    try:
        described = None if weights.problems else _description(path)
    except (SpatialForcingError, ValueError) as error:
        return Inspection(path, "teacher", "teacher, described in its file", problems=[str(error)])
    if described is not None:
        return _inspect_described(path, weights, described)
    shapes = shapes_of(weights)
    blanks = _blanks_like(shapes)
    alike = {n: len(set(blank.expected.items()) & set(shapes.items())) for n, blank in blanks.items()}
    most = max(alike.values(), default=0)
    if not most:
        return None
    names = [name for name, count in alike.items() if count == most]
    record, blank = RECORDS[names[0]], blanks[names[0]]
    found = Inspection(path, "teacher", f"published weights of the teacher {' or '.join(names)}")
    _add_files(found, weights)
    config = record.config  # type: ignore[attr-defined]
    _add_record(found, record, Sizes(config.depth, config.patch, record.width or config.embed_dim))
    if len(names) > 1:
        found.facts["licence"] = " or ".join(f"{RECORDS[name].licence} ({name})" for name in names)
        found.notes.append("The files do not say which of these it is; licences differ.")
    found.notes.append(f"Name both: --teacher {names[0]} --teacher-checkpoint {path}")
    if not weights.problems:
        found.differ(blank.differences(shapes))
    return found


def _blanks_like(shapes: Shapes) -> dict[str, Blank]:
    """Models of the teachers whose published weights these may be, by the teachers' names."""
    families = [of for of in FAMILIES.values() if any(name.startswith(of.mark) for name in shapes)]
    return {
        name: of.blank(config, of.trunk)
        for of in families
        for name, record in RECORDS.own().items()
        if record.takes_weights and isinstance(config := getattr(record, "config", None), of.config)
    }


def _description(path: Path) -> dict[str, Any] | None:
    """What a file of this package's format says of itself; None of others."""
    checkpoint = Checkpoint(path)
    return description_of(checkpoint) if METADATA_KEY in checkpoint.metadata else None


def _inspect_described(path: Path, weights: Found, said: dict[str, Any]) -> Inspection:
    found = Inspection(path, "teacher", f"teacher: {said['architecture']}, described in its file")
    _add_files(found, weights)
    family = FAMILIES[said["architecture"]]
    try:
        config = family.config(**said["config"])
        record, blank = record_of_file(path), family.blank(config, family.trunk)
        _add_record(found, record, Sizes(config.depth, config.patch, 0))
        checked_resolution(record.resolution, config.patch)
    except SpatialForcingError as error:
        found.problems.append(str(error))
        return found
    except Exception as error:  # keys that no such model has, sizes that it cannot have
        found.problems.append(f"Its description ({METADATA_KEY}) is of no such model: {error!r}.")
        return found
    found.facts["made for"] = record.note
    found.differ(blank.differences(shapes_of(weights)))
    return found


def _add_files(found: Inspection, weights: Found) -> None:
    found.facts |= facts_of(weights)
    found.problems += weights.problems
    found.notes += weights.notes


def _add_record(found: Inspection, record: TeacherRecord, sizes: Sizes) -> None:
    found.facts |= {
        "licence": record.licence + ", no commercial use" * record.non_commercial,
        "terms": record.terms,
        "layers": sizes.layers,
        "patch": f"{sizes.patch} px",
        "resolution": f"{record.resolution} px",
        "views": "see each other" if record.multi_view else "one by one",
    }
    if sizes.width:
        found.facts["width"] = sizes.width


# ---- models of libraries


def _timm_model(folder: Path) -> tuple[Any, Sizes]:
    """The model of a folder of timm's on the meta device."""
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm", "teachers") from error
    with torch.device("meta"):
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    patch = timm_teacher.patch_of(model, str(folder))
    return model, Sizes(len(model.blocks), patch, model.embed_dim)


def _transformers_model(folder: Path) -> tuple[Any, Sizes]:
    """The model of a folder of transformers' on the meta device."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", "teachers") from error
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type not in hf.ARCHITECTURES:
        raise UnknownNameError("model_type of a teacher", config.model_type, hf.ARCHITECTURES)
    model_class = getattr(transformers, hf.ARCHITECTURES[config.model_type].class_name)
    if not hasattr(model_class, "_from_config"):  # an Auto class
        build = model_class.from_config
    else:
        build, config = model_class, getattr(config, "vision_config", config)
    with torch.device("meta"):
        model = build(config)
    inner: Any = getattr(config, "backbone_config", None) or config
    if not isinstance(inner.patch_size, int):
        raise WeightsError(f"Its patches are of {inner.patch_size}: only squares are supported.")
    return model, Sizes(inner.num_hidden_layers, inner.patch_size, inner.hidden_size)


def _converted(model: Any, shapes: Shapes) -> Shapes:
    """Shapes under the names that transformers gives to those of earlier versions as it loads them."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    for rename in get_checkpoint_conversion_mapping(model.config.model_type) or []:
        if isinstance(rename, WeightRenaming):
            shapes = {rename.rename_source_key(name)[0]: shape for name, shape in shapes.items()}
    return shapes
