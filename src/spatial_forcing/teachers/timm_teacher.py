"""Single-view teachers of the timm library: C-RADIO (arXiv 2412.07679), a student of several models, and any
of timm's vision transformers in a local folder.

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
from spatial_forcing.teachers.record import UNKNOWN, TeacherRecord


class TimmTeacher(FrozenTeacher):
    """Teacher from a vision transformer of timm: patch tokens of its blocks after the final norm, per view.

    Blocks deeper than asked for are not computed.

    Args:
        model: a vision transformer of timm, in float32.
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
        patch, depth = patch_of(model, said["name"]), len(model.blocks)
        if not -depth <= layer < depth:
            raise NoSuchLayerError(said["name"], layer, depth)
        layer %= depth
        weights = digest(model.state_dict().items())
        super().__init__(
            width=model.embed_dim,
            patch=patch,
            multi_view=False,
            identity={
                "weights": weights,
                "model": model_name,
                "heads": model.blocks[0].attn.num_heads,
                "layer": layer,
            },
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


def patch_of(model: Any, name: str) -> int:
    """Pixels along a side of a patch, of a vision transformer of timm.

    Args:
        model: of timm.
        name: of the teacher, or its path.

    Raises:
        WeightsError: it is something else: it has no blocks of attention over one grid of patches.
    """
    embedding = getattr(model, "embeds", None) or getattr(model, "patch_embed", None)
    height, width = getattr(embedding, "patch_size", (0, 1))
    if height != width or not hasattr(next(iter(getattr(model, "blocks", ())), None), "attn"):
        raise WeightsError(
            f"{name} is a {type(model).__name__} of timm, not a vision transformer with one grid of square "
            "patches, which a teacher must be."
        )
    return height


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TimmRecord(TeacherRecord):
    """Record of a teacher of timm.

    Attributes:
        model: what timm calls it.
        sizes: names and values of those that are not timm's.
        one_size: whether it is built for images of one size.
    """

    model: str
    sizes: tuple[tuple[str, Any], ...] = ()
    one_size: bool = False


def load_timm(
    record: TimmRecord, *, weights: Path | None, device: torch.device | str, **options: Any
) -> TimmTeacher:
    """Loads a `TimmTeacher` from timm's repository on the Hub, or from a local file or folder.

    Raises:
        TeacherUnavailableError: the Hub cannot be reached.
        WeightsError: the file cannot be read, or does not fit the model.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError("timm", "teachers") from error
    source, given = record.model, dict(record.sizes)
    if record.path is not None:
        source = f"local-dir:{record.path}"
    elif weights is not None:
        given["pretrained_cfg_overlay"] = {"file": str(_file_in(weights))}
    if record.one_size:
        given["img_size"] = options["resolution"]
    try:
        model = timm.create_model(source, pretrained=True, **given)
    except Exception as error:  # of many kinds: no connection, a damaged file, tensors of another shape
        if weights is None:
            raise TeacherUnavailableError(record, error) from error
        message = f"The weights in {weights} do not fit {record.model} of timm: {error}"
        raise WeightsError(message) from error
    said = {"model_name": record.model, "name": record.name, "licence": record.licence}
    return TimmTeacher(model.float(), **said, **options).to(device)


def _file_in(weights: Path) -> Path:
    file = weights / "model.safetensors" if weights.is_dir() else weights
    if not file.is_file():
        raise WeightsError(f"No weights at {file}: there is no such file.")
    return file


def record_of_folder(path: Path, said: dict[str, Any]) -> TimmRecord:
    """Builds a record for a folder in the layout of timm's Hub repositories, from its config.json."""
    config = said.get("pretrained_cfg")
    config = config if isinstance(config, dict) else {}
    return TimmRecord(
        name=str(path),
        loader=load_timm,
        model=said["architecture"],
        one_size=config.get("fixed_input_size", False),
        licence=config.get("license") or UNKNOWN,
        resolution=config.get("input_size", (3, 224, 224))[-1],
        note="Local files.",
        terms=str(path),
        path=path,
    )


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
        patch=16,
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
