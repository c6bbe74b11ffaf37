"""Single-view teachers of the timm library: C-RADIO (arXiv 2412.07679), one model distilled from several.

B: batch, V: views (always one), H, W: pixels, h, w: patches, C: channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.teachers.base import FrozenTeacher, NoSuchLayerError, digest
from spatial_forcing.teachers.checkpoint import WeightsError
from spatial_forcing.teachers.hub import TeacherUnavailableError
from spatial_forcing.teachers.record import TeacherRecord


class TimmTeacher(FrozenTeacher):
    """Teacher from a vision transformer of timm: patch tokens of its blocks after the final norm, per view.

    Blocks deeper than asked for are not computed.

    Args:
        model: of timm, in float32, with `forward_intermediates`.
        model_name: what timm calls it.
        layer: of `teacher(images)`, 0 to depth - 1, or counted from the end.
        dtype: the whole model runs in it.
        said: name, licence, resolution, batch_size: see `FrozenTeacher`.
    """

    def __init__(
        self,
        model: Any,
        *,
        model_name: str,
        layer: int = -1,
        dtype: torch.dtype = torch.float32,
        **said: Any,
    ):
        depth = len(model.blocks)
        if not -depth <= layer < depth:
            raise NoSuchLayerError(said["name"], layer, depth)
        layer %= depth
        weights = digest(model.state_dict().items())
        super().__init__(
            width=model.embed_dim,
            patch=model.embeds.patch_size[0],
            multi_view=False,
            identity={"weights": weights, "model": model_name, "layer": layer},
            **said,
        )
        self.layer, self.layers = layer, depth
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self.model: Any = nn.Module.to(model, dtype=dtype)
        self.dtype = dtype
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        mean, std = (images_BV3HW.new_tensor(x).view(3, 1, 1) for x in (self.mean, self.std))
        found = self.model.forward_intermediates(
            ((images_BV3HW - mean) / std).flatten(0, 1).to(self.dtype),
            indices=list(layers),
            norm=True,
            stop_early=True,
            intermediates_only=True,
        )
        return [map_BChw.movedim(1, -1).unflatten(0, images_BV3HW.shape[:2]) for map_BChw in found]


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TimmRecord(TeacherRecord):
    """Record of a teacher of timm.

    Attributes:
        model: what timm calls it.
        sizes: names and values of those that are not timm's.
    """

    model: str
    sizes: tuple[tuple[str, Any], ...] = ()


def load_timm(
    record: TimmRecord, *, weights: Path | None, device: torch.device | str, **options: Any
) -> TimmTeacher:
    """Loads a `TimmTeacher` from timm's repository on the Hub, or from a local file.

    Raises:
        TeacherUnavailableError: the Hub cannot be reached.
        WeightsError: the file cannot be read, or does not fit the model.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm", "teachers") from error
    if weights is not None and weights.is_dir():
        weights = weights / "model.safetensors"
    if weights is not None and not weights.is_file():
        raise WeightsError(f"No weights at {weights}: there is no such file.")
    local = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        model = timm.create_model(record.model, pretrained=True, **local, **dict(record.sizes))
    except Exception as error:  # of many kinds: no connection, a damaged file, tensors of another shape
        if weights is not None:
            message = f"The weights in {weights} do not fit {record.model} of timm: {error}"
            raise WeightsError(message) from error
        raise TeacherUnavailableError(record, error) from error
    said = {"model_name": record.model, "name": record.name, "licence": record.licence}
    return TimmTeacher(model.float(), **said, **options).to(device)


def _radio(name: str, model: str, what: str, parameters: int, width: int, layers: int) -> TimmRecord:
    return TimmRecord(
        name=name,
        loader=load_timm,
        model=model,
        repo=f"timm/{model}.c_radio",
        files=("model.safetensors",),
        licence="NVIDIA Open Model License",
        terms="https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
        resolution=512,
        parameters=parameters,
        width=width,
        layers=layers,
        control=True,
        note=f"2D control: C-RADIO{what}.",
    )


RECORDS = (
    _radio("c-radio-base", "naflexvit_base_patch16_radio_v3", "v3 ViT-B/16", 98_252_544, 768, 12),
    _radio("c-radio-large", "naflexvit_large_patch16_radio_v3", "v3 ViT-L/16", 319_931_392, 1024, 24),
    _radio("c-radio-so400m", "naflexvit_so400m_patch16_radio_v4", "v4 SO400M/16", 431_238_384, 1152, 27),
)
