"""VGGT as a teacher: strict loading of its weights, patch tokens of its layers as features, its records.

B: batch, V: views, H, W: pixels, h, w: patches, C: twice the embedding width (frame, then global attention).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.teachers.checkpoint import Blank, Checkpoint, WeightsError, load_strictly
from spatial_forcing.teachers.da3_heads import rotation
from spatial_forcing.teachers.described import METADATA_KEY, description_of, record_from
from spatial_forcing.teachers.estimator import Estimator
from spatial_forcing.teachers.hub import fetch
from spatial_forcing.teachers.model_teacher import ModelTeacher
from spatial_forcing.teachers.record import TeacherRecord
from spatial_forcing.teachers.vggt import MODULES, VGGT, Predictions, VGGTConfig

UNTRAINED_SEED = 0

# What a checkpoint may hold beside what is built: published ones a track head, our 2D control a pixel head.
KNOWN_MODULES = (*MODULES, "track_head", "pixel_head")


def load_vggt(
    weights: str | Path | Checkpoint,
    config: VGGTConfig | None = None,
    modules: Iterable[str] = MODULES,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VGGT:
    """Loads a VGGT from a file or folder with the parameter names of the released checkpoint.

    Args:
        weights: see `Checkpoint`.
        config: sizes of the model; VGGT-1B by default.
        modules: which of `MODULES` to build and load; the others, and the track head, are not read.
        device, dtype: see `VGGT.set_dtype`.

    Raises:
        WeightsError: if a wanted tensor is missing or of another shape, or one belongs to no known module.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint(weights)
    load_strictly(blank := blank_vggt(config, modules), checkpoint)
    return blank.model.set_dtype(dtype).to(device)


def blank_vggt(config: VGGTConfig | None = None, modules: Iterable[str] = MODULES) -> Blank[VGGT]:
    """A VGGT without weights; the arguments are those of `load_vggt`."""
    with torch.device("meta"):
        model = VGGT(config, modules)
    return Blank(model, tuple(f"{name}." for name in KNOWN_MODULES if name not in model.modules_built))


class VGGTTeacher(ModelTeacher):
    """Teacher from a VGGT aggregator: patch tokens of its layers, without special tokens.

    Layers deeper than asked for are not computed.

    Args:
        model: see `ModelTeacher`; only its aggregator is kept.
        options: layer, dtype, name, licence, multi_view, resolution, batch_size: see `ModelTeacher`.
    """

    def __init__(self, model: VGGT, **options: Any):
        super().__init__(
            model,
            model.aggregator.state_dict().items(),
            width=2 * model.config.embed_dim,
            heads=("camera", "dpt"),
            identity={},
            **options,
        )
        self.aggregator = model.set_dtype(self.dtype).aggregator
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        rows, cols = (side // self.patch for side in images_BV3HW.shape[-2:])
        return [
            tokens_BVNC[:, :, self.aggregator.special :].unflatten(2, (rows, cols))
            for tokens_BVNC in self.aggregator(images_BV3HW, layers)
        ]


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VGGTRecord(TeacherRecord):
    """Record of a VGGT teacher.

    Attributes:
        config: sizes, where the weights do not carry them.
        described: the note that this package's own weights of it carry in their file.
    """

    config: VGGTConfig | None = None
    described: str | None = None


def load_vggt_teacher(
    record: VGGTRecord, *, weights: Path | None, device: torch.device | str, **options: Any
) -> VGGTTeacher:
    """Loads the teacher of a record with its trained weights; the options are those of `VGGTTeacher`.

    Raises:
        TeacherUnavailableError: the weights cannot be fetched.
        WeightsError: they cannot be read, do not fit, or are of another teacher.
    """
    checkpoint, config = checkpoint_of(record, weights)
    return _teacher(record, load_vggt(checkpoint, config, modules=("aggregator",)), device, options)


def checkpoint_of(record: VGGTRecord, weights: Path | None = None) -> tuple[Checkpoint, VGGTConfig]:
    """Opens the trained weights of a record, or local ones in ``weights``, with the sizes of the model.

    Raises: as :func:`load_vggt_teacher`.
    """
    weights = weights or record.path
    if weights is not None:
        checkpoint = Checkpoint(weights)
        _check_description(checkpoint, record)
    else:
        checkpoint = Checkpoint(_packaged(record) if record.packaged else fetch(record))
    return checkpoint, record.config or VGGTConfig(**description_of(checkpoint)["config"])


def load_depth(record: VGGTRecord, device: torch.device | str) -> Estimator:
    """Loads the model of a record as an estimator of depth: see `TeacherRecord.depth`."""
    model = load_vggt(*checkpoint_of(record), modules=("aggregator", "depth_head"), device=device).eval()
    return Estimator(model, lambda found: found.depth_BVHW)


def load_confidence(record: VGGTRecord, device: torch.device | str) -> Estimator:
    """Loads the model of a record as an estimator of certainty: see `TeacherRecord.confidence`."""
    model = load_vggt(*checkpoint_of(record), modules=("aggregator", "depth_head"), device=device).eval()
    return Estimator(model, lambda found: found.depth_confidence_BVHW)


def load_scene(record: VGGTRecord, device: torch.device | str) -> Estimator:
    """Loads the model of a record as an estimator of depth and cameras: see `TeacherRecord.scene`."""
    modules = ("aggregator", "camera_head", "depth_head")
    model = load_vggt(*checkpoint_of(record), modules=modules, device=device).eval()

    def scene(found: Predictions) -> tuple[Tensor, Tensor]:
        assert found.pose_IBV9 is not None
        assert found.depth_BVHW is not None
        pose_BV9 = found.pose_IBV9[-1]  # world to camera: x_camera = R x + t
        return found.depth_BVHW, torch.cat([rotation(pose_BV9[..., 3:7]), pose_BV9[..., :3, None]], dim=-1)

    return Estimator(model, scene)


def load_untrained(
    record: VGGTRecord, *, weights: None, device: torch.device | str, **options: Any
) -> VGGTTeacher:
    """Loads the teacher of a record with its initial random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        model = VGGT(record.config, modules=("aggregator",))
    return _teacher(record, model, device, options)


def _teacher(
    record: VGGTRecord, model: VGGT, device: torch.device | str, options: dict[str, Any]
) -> VGGTTeacher:
    said = {"name": record.name, "licence": record.licence, "multi_view": record.multi_view}
    return VGGTTeacher(model, **said, **options).to(device)


def record_of_file(path: Path, said: dict[str, Any]) -> VGGTRecord:
    """Builds a record for a file of this package's format, from its description."""
    loaders = {"depth": load_depth, "scene": load_scene, "confidence": load_confidence}
    return record_from(said, path, VGGTRecord, loader=load_vggt_teacher, **loaders)


def _packaged(record: VGGTRecord) -> Path:
    path = Path(str(resources.files(__package__) / "weights" / str(record.packaged)))
    if not path.is_file():
        raise WeightsError(
            f"The weights of {record.name!r} are not in this installation ({path}). "
            "Train them with recipes/vggt_tiny_sim.py, or name a file with weights=."
        )
    return path


def _check_description(checkpoint: Checkpoint, record: VGGTRecord) -> None:
    """Raises `WeightsError` if a file says that it is another teacher than the one it was named as."""
    if record.path is not None or METADATA_KEY not in checkpoint.metadata:
        return  # given by its path: it is what it says; published weights say nothing
    said = description_of(checkpoint)
    if (said["note"], said["multi_view"]) == (record.described, record.multi_view):
        return
    names = [other.name for other in RECORDS if other.described == said["note"]]
    is_it = f"the teacher {names[0]!r}" if names else f"another teacher ({said['note']!r})"
    instead = f'load_teacher("{names[0] if names else checkpoint.path}"'
    instead += f', weights="{checkpoint.path}")' if names else ")"
    raise WeightsError(
        f"The weights in {checkpoint.path} are those of {is_it}, not of {record.name!r}, as which they were "
        f"named. Name what they are: {instead}."
    )


# The sizes of the small teachers.
TINY = VGGTConfig(
    img_size=112,
    embed_dim=112,
    depth=4,
    vit_depth=2,
    num_heads=4,
    camera_depth=1,
    dpt_layers=(0, 1, 2, 3),
    dpt_features=16,
    dpt_channels=(16, 24, 32, 32),
    dpt_hidden=16,
)
_SCENES = "Small VGGT trained on simulated Meta-World scenes"
_TINY_SIM = VGGTRecord(
    name="vggt-tiny-sim",
    loader=load_vggt_teacher,
    depth=load_depth,
    scene=load_scene,
    confidence=load_confidence,
    licence="Apache-2.0",
    packaged="vggt-tiny-sim.safetensors",
    resolution=TINY.img_size,
    parameters=1_598_240,
    patch=TINY.patch,
    width=2 * TINY.embed_dim,
    layers=TINY.depth,
    multi_view=True,
    note="A small VGGT trained on simulated Meta-World scenes; comes with this package.",
    described=f"{_SCENES}; geometry objective, frame first-camera.",
)

RECORDS = (
    VGGTRecord(
        name="vggt-1b",
        loader=load_vggt_teacher,
        depth=load_depth,
        scene=load_scene,
        confidence=load_confidence,
        repo="facebook/VGGT-1B",
        files=("model.safetensors", "model.pt"),
        licence="CC-BY-NC-4.0",
        terms="https://huggingface.co/facebook/VGGT-1B",
        non_commercial=True,
        config=VGGTConfig(),
        parameters=909_112_320,
        patch=VGGTConfig().patch,
        width=2 * VGGTConfig().embed_dim,
        layers=VGGTConfig().depth,
        resolution=518,
        multi_view=True,
        note="VGGT-1B, the teacher of the paper.",
    ),
    _TINY_SIM,
    replace(
        _TINY_SIM,
        name="vggt-tiny-sim-robot",
        packaged="vggt-tiny-sim-robot.safetensors",
        note="The same, with points and poses in the robot's frame in place of the first camera's.",
        described=f"{_SCENES}; geometry objective, frame robot.",
    ),
    VGGTRecord(
        name="vggt-tiny-sim-2d",
        loader=load_vggt_teacher,
        licence="Apache-2.0",
        packaged="vggt-tiny-sim-2d.safetensors",
        resolution=TINY.img_size,
        parameters=1_598_240,
        patch=TINY.patch,
        width=2 * TINY.embed_dim,
        layers=TINY.depth,
        control=True,
        note="2D control: the same model and images, trained to fill in masked patches of single views.",
        described=f"{_SCENES}; masked objective.",
    ),
    VGGTRecord(
        name="untrained-tiny",
        loader=load_untrained,
        licence="Apache-2.0",
        config=TINY,
        resolution=TINY.img_size,
        parameters=1_598_240,
        patch=TINY.patch,
        width=2 * TINY.embed_dim,
        layers=TINY.depth,
        takes_weights=False,
        multi_view=True,
        control=True,
        note="Control: the small VGGT with its initial random weights (always the same).",
    ),
)
