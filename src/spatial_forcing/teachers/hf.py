"""2D controls: vision transformers of the transformers library (DINOv2, DINOv3, SigLIP) as teachers.

B: batch, V: views (always one), H, W: pixels, h, w: patches, N: tokens, C: channels.
"""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatial_forcing.errors import MissingDependencyError, UnknownNameError
from spatial_forcing.teachers.base import FrozenTeacher, NoSuchLayerError, TeacherInputError, digest
from spatial_forcing.teachers.checkpoint import WeightsError
from spatial_forcing.teachers.hub import TeacherUnavailableError
from spatial_forcing.teachers.records import TeacherRecord
from spatial_forcing.teachers.vggt import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALISATION = {  # mean and standard deviation by the `model_type` of config.json
    "dinov2": _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
    "dinov3_vit": _IMAGENET,
    "siglip": _HALF,
    "siglip_vision_model": _HALF,
}


class TransformersTeacher(FrozenTeacher):
    """Patch tokens of a vision transformer, after its final norm; one view at a time.

    A layer short of the last cuts the model there: its tokens still pass the final norm.

    Args:
        model: a transformers vision model, in float32.
        model_type: its `config.model_type`, a key of `NORMALISATION`.
        layer: 0 to depth - 1, or counted from the end.
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
        blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
        if not -len(blocks) <= layer < len(blocks):
            raise NoSuchLayerError(name, layer, len(blocks))
        layer %= len(blocks)
        self.mean, self.std = NORMALISATION[model_type]
        super().__init__(
            name=name,
            width=model.config.hidden_size,
            patch=model.config.patch_size,
            licence=licence,
            multi_view=False,
            resolution=resolution,
            identity={
                "weights": digest(model.state_dict().items()),
                "model_type": model_type,
                "heads": model.config.num_attention_heads,
                "layer": layer,
            },
            batch_size=batch_size,
        )
        self.layer, self.layers = layer, len(blocks)
        del blocks[layer + 1 :]
        resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resizes else {}
        self.model, self.dtype = nn.Module.to(model, dtype=dtype), dtype
        self.freeze()

    def tokens(self, images_BV3HW: Tensor) -> Tensor:
        mean, std = (images_BV3HW.new_tensor(x).view(3, 1, 1) for x in (self.mean, self.std))
        normed_B3HW = ((images_BV3HW - mean) / std).flatten(0, 1).to(self.dtype)
        hidden_BNC = self.model(pixel_values=normed_B3HW, **self.options).last_hidden_state
        rows, cols = (side // self.patch for side in images_BV3HW.shape[-2:])
        patches_BPC = hidden_BNC[:, -rows * cols :]  # class and register tokens come first
        return patches_BPC.unflatten(1, (rows, cols)).unflatten(0, images_BV3HW.shape[:2])


def load_transformers(
    record: TeacherRecord,
    weights: Path | None = None,
    *,
    resolution: int | tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    **options,
) -> TransformersTeacher:
    """A `TransformersTeacher` from the record's Hub repository, or from a local folder in the Hub's layout.

    Raises:
        TeacherUnavailableError: the Hub cannot be reached, or asks for terms to be accepted.
        UnknownNameError: the folder holds a model of another type than `NORMALISATION` lists.
        WeightsError: tensors are missing or of another shape, or the folder holds another model than the
            record is of.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise MissingDependencyError("transformers", "teachers") from error
    source = str(weights or record.repo)
    if weights is not None and not (weights / "config.json").is_file():
        raise WeightsError(f"No transformers model at {weights}: expected a folder with its config.json.")
    try:
        config = AutoConfig.from_pretrained(source)
        model_type = config.model_type
        if model_type not in NORMALISATION:
            raise UnknownNameError("model_type of a teacher", model_type, NORMALISATION)
        if weights is not None:
            check_architecture(config, record, weights)
        model, loading = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        if weights is not None:
            raise WeightsError(f"The model in {weights} could not be read: {error}") from error
        raise TeacherUnavailableError(record, error) from error
    problems = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if problems:
        raise WeightsError(f"{source} lacks {len(problems)} tensors of the model: {problems[:4]}, ...")
    model = getattr(model, "vision_model", model)  # SigLIP: the image half
    if not isinstance(model.config.patch_size, int):
        raise TeacherInputError(
            f"{source} has patches of {model.config.patch_size}: only squares are supported."
        )
    return TransformersTeacher(
        model,
        model_type=model_type,
        name=record.name,
        licence=record.licence,
        resolution=record.resolution if resolution is None else resolution,
        **options,
    ).to(device)


def check_architecture(config: Any, record: TeacherRecord, weights: Path) -> None:
    """Raises `WeightsError` if the config.json of a folder describes another model than the record."""
    if record.architecture is None:
        return
    types, width = record.architecture
    found = config.model_type, getattr(config, "vision_config", config).hidden_size
    if found[0] not in types or found[1] != width:
        raise WeightsError(
            f"The model in {weights} is a {found[0]} of width {found[1]}, not {record.name!r} ({types[0]} of "
            f"width {width}), as which it was named. Name what it is, or give its path: "
            f'load_teacher("{weights}").'
        )
