"""Single-view teachers of the transformers library: DINOv2, DINOv3, SigLIP, Depth Anything V2, the JEPAs.

Their layers are read with transformers' own `output_hidden_states`. timm has these architectures, too, with
`forward_intermediates`, but does not read weights in the layout of their Hub repositories, which is
transformers': its converters take the original checkpoints (timm 1.0.31 finds a place for none of the tensors
of a DINOv2 or SigLIP, and for two of a DINOv3). It would take a conversion of ours and new fingerprints, and
the config.json of a local folder would say nothing of the model that is built.

B: batch, V: views (always one), T: frames of a clip, H, W: pixels, h, w: patches, N: tokens, C: channels.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.errors import MissingDependencyError, UnknownNameError
from spatial_forcing.teachers.base import FrozenTeacher, NoSuchLayerError, TeacherInputError, digest
from spatial_forcing.teachers.checkpoint import WeightsError
from spatial_forcing.teachers.hub import TeacherUnavailableError
from spatial_forcing.teachers.model import IMAGENET_MEAN, IMAGENET_STD
from spatial_forcing.teachers.record import UNKNOWN, TeacherRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Statistics = tuple[float, float, float]


class Architecture(NamedTuple):
    """Architecture by the `model_type` of a config.json: final norm, images, and how it is read and called.

    Attributes:
        norm: the module that its last hidden state has passed.
        mean, std: of its images.
        class_name: of transformers, to read it with.
        inner: part of what was read that is the vision transformer, and its class; None if all of it is.
        clip: frames that it sees at once; an image is repeated so often. 0 for models of images.
    """

    norm: str
    mean: Statistics
    std: Statistics
    class_name: str = "AutoModel"
    inner: tuple[str, str] | None = None
    clip: int = 0


_DINOV2 = Architecture("layernorm", IMAGENET_MEAN, IMAGENET_STD)
# Of the whole of SigLIP the image half is read.
_SIGLIP_VISION = Architecture(
    "vision_model.post_layernorm", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "SiglipVisionModel"
)
_DEPTH_ANYTHING = _DINOV2._replace(
    class_name="AutoModelForDepthEstimation", inner=("backbone", "Dinov2Model")
)
ARCHITECTURES = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": Architecture("norm", IMAGENET_MEAN, IMAGENET_STD),
    "depth_anything": _DEPTH_ANYTHING,
    "ijepa": _DINOV2,
    "vjepa2": Architecture("encoder.layernorm", IMAGENET_MEAN, IMAGENET_STD, clip=2),
    "siglip": _SIGLIP_VISION,
    "siglip_vision_model": _SIGLIP_VISION,
}


class TransformersTeacher(FrozenTeacher):
    """Teacher from a transformers vision model: patch tokens of its layers after the final norm, per view.

    The model is computed to its end for any layer; all of its hidden states are kept for a moment unless the
    last layer alone is wanted.

    Args:
        model: a transformers vision model (of SigLIP `SiglipVisionModel`, of Depth Anything its backbone), in
            float32.
        model_type: of the config.json it comes from, a key of `ARCHITECTURES`.
        layer: of `teacher(images)`, 0 to depth - 1, or counted from the end.
        dtype: the whole model runs in it.
        name, licence, resolution, batch_size: see `FrozenTeacher`.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        model_type: str,
        name: str,
        licence: str,
        resolution: int | tuple[int, int],
        layer: int = -1,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ):
        config = model.config
        if not -config.num_hidden_layers <= layer < config.num_hidden_layers:
            raise NoSuchLayerError(name, layer, config.num_hidden_layers)
        layer %= config.num_hidden_layers
        self.architecture = ARCHITECTURES[model_type]
        check_side(model, resolution, name)
        super().__init__(
            name=name,
            width=config.hidden_size,
            patch=config.patch_size,
            licence=licence,
            multi_view=False,
            resolution=resolution,
            identity={
                # Of SigLIP the inner model, under the names that it has in the whole of SigLIP.
                "weights": digest(getattr(model, "vision_model", model).state_dict().items()),
                "model_type": model_type,
                "heads": config.num_attention_heads,
                "layer": layer,
            },
            batch_size=batch_size,
        )
        self.layer, self.layers = layer, config.num_hidden_layers
        options = {"interpolate_pos_encoding": True, "skip_predictor": True}
        takes = inspect.signature(model.forward).parameters
        self.options = {name: value for name, value in options.items() if name in takes}
        self.model, self.dtype = nn.Module.to(model, dtype=dtype), dtype
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        of = self.architecture
        mean, std = (images_BV3HW.new_tensor(x).view(3, 1, 1) for x in (of.mean, of.std))
        normed_B3HW = ((images_BV3HW - mean) / std).flatten(0, 1).to(self.dtype)
        if of.clip:
            given = {"pixel_values_videos": normed_B3HW[:, None].expand(-1, of.clip, -1, -1, -1)}
        else:
            given = {"pixel_values": normed_B3HW}
        inner = layers != (self.layer_index(-1),)
        output = self.model(**given, output_hidden_states=inner, **self.options)
        rows, cols = (side // self.patch for side in images_BV3HW.shape[-2:])
        found = []
        for layer in layers:
            if inner:  # the first hidden state is what enters layer 0
                hidden_BNC = self.model.get_submodule(of.norm)(output.hidden_states[layer + 1])
            else:
                hidden_BNC = output.last_hidden_state
            patches_BPC = hidden_BNC[:, -rows * cols :]  # class and register tokens come first
            found.append(patches_BPC.unflatten(1, (rows, cols)).unflatten(0, images_BV3HW.shape[:2]))
        return found


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TransformersRecord(TeacherRecord):
    """Record of a transformers vision model.

    Attributes:
        architecture: what config.json says of it: ways to write the `model_type`, and the `hidden_size`.
    """

    architecture: tuple[tuple[str, ...], int] | None = None


def load_transformers(
    record: TransformersRecord, *, weights: Path | None, device: torch.device | str, **options: Any
) -> TransformersTeacher:
    """Loads a `TransformersTeacher` from the record's Hub repository, or a local folder in the Hub's layout.

    Raises:
        TeacherUnavailableError: the Hub cannot be reached, or asks for terms to be accepted.
        UnknownNameError: the folder holds a model of another type than `ARCHITECTURES` lists.
        WeightsError: tensors are missing or of another shape, or the folder holds another model than the
            record is of.
    """
    source = str(weights or record.repo)
    if weights is not None and not (weights / "config.json").is_file():
        raise WeightsError(f"No transformers model at {weights}: expected a folder with its config.json.")
    try:
        model, model_type = _read(source, record, weights)
    except OSError as error:
        if weights is not None:
            raise WeightsError(f"The model in {weights} could not be read: {error}") from error
        raise TeacherUnavailableError(record, error) from error
    if not isinstance(model.config.patch_size, int):
        raise TeacherInputError(
            f"{source} has patches of {model.config.patch_size}: only squares are supported."
        )
    said = {"model_type": model_type, "name": record.name, "licence": record.licence}
    return TransformersTeacher(model, **said, **options).to(device)


def _read(source: str, record: TransformersRecord, weights: Path | None) -> tuple["PreTrainedModel", str]:
    """Reads the vision model and `model_type` of a folder or Hub repository; raises OSError if unreadable."""
    try:
        import transformers
        from transformers.utils import logging as said
    except ImportError as error:
        raise MissingDependencyError("transformers", "teachers") from error
    config = transformers.AutoConfig.from_pretrained(source)
    if config.model_type not in ARCHITECTURES:
        raise UnknownNameError("model_type of a teacher", config.model_type, ARCHITECTURES)
    if weights is not None:
        check_architecture(config, record, weights)
    of = ARCHITECTURES[config.model_type]
    verbosity = said.get_verbosity()
    said.set_verbosity_error()  # of a part it would print a page about the rest
    try:
        model, loading = _with_info(getattr(transformers, of.class_name).from_pretrained, source)
    finally:
        said.set_verbosity(verbosity)
    problems = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if problems:
        raise WeightsError(f"{source} lacks {len(problems)} tensors of the model: {problems[:4]}, ...")
    if of.inner is not None:
        part, class_name = of.inner
        whole, model = model, getattr(transformers, class_name)(config.backbone_config)
        model.load_state_dict(whole.get_submodule(part).state_dict())
    return model, config.model_type


def _with_info(from_pretrained: Any, source: str) -> tuple["PreTrainedModel", dict[str, Any]]:
    return from_pretrained(source, dtype=torch.float32, output_loading_info=True)


def check_side(model: "PreTrainedModel", resolution: int | tuple[int, int], name: str) -> None:
    """Raises `TeacherInputError` for another resolution than that of a model that takes only one."""
    side = getattr(model.config, "crop_size", None)  # V-JEPA 2 counts places on a grid of this size
    if side is not None and resolution not in (side, (side, side)):
        raise TeacherInputError(f"{name} takes images of {side} x {side} pixels only; got {resolution}.")


def check_architecture(config: Any, record: TransformersRecord, weights: Path) -> None:
    """Raises `WeightsError` if the config.json of a folder describes another model than the record."""
    if record.architecture is None:
        return
    types, width = record.architecture
    part = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    found = config.model_type, part.hidden_size
    if found[0] not in types or found[1] != width:
        raise WeightsError(
            f"The model in {weights} is a {found[0]} of width {found[1]}, not {record.name!r} ({types[0]} of "
            f"width {width}), as which it was named. Name what it is, or give its path: "
            f'load_teacher("{weights}").'
        )


def record_of_folder(path: Path, said: dict[str, Any]) -> TransformersRecord:
    """Builds a record for a folder with a transformers model, from its config.json."""
    of = said.get("backbone_config") or said
    return TransformersRecord(
        name=str(path),
        loader=load_transformers,
        licence=UNKNOWN,
        resolution=said.get("crop_size") or of.get("image_size", 224),
        note="Local files.",
        terms=str(path),
        path=path,
    )
