"""MapAnything as a teacher: strict loading of its weights, features of its blocks, its records.

B: batch, V: views, H, W: pixels, h, w: patches, C: width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.teachers.checkpoint import Blank, Checkpoint, load_strictly
from spatial_forcing.teachers.mapanything import MODULES, TRUNK, MapAnything, MapAnythingConfig
from spatial_forcing.teachers.model_teacher import Architecture, ModelRecord, ModelTeacher

# What the released file holds beside what is built: encoders of given geometry, which without it add nothing,
# and the head of the poses between views, which nothing here reads.
KNOWN_MODULES = (
    *(name for name in MODULES if name != "trunk"),
    *("ray_dirs_encoder", "depth_encoder", "depth_scale_encoder"),
    *("cam_rot_encoder", "cam_trans_encoder", "cam_trans_scale_encoder", "pose_head"),
)


def load_mapanything(
    weights: str | Path | Checkpoint,
    config: MapAnythingConfig | None = None,
    modules: Iterable[str] = MODULES,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MapAnything:
    """Loads a MapAnything from a file or folder with the parameter names of the released checkpoint.

    Args:
        weights: see `Checkpoint`.
        config: sizes of the model; the released one by default.
        modules: which of `MODULES` to build and load; the others are not read.
        device, dtype: see `MapAnything.set_dtype`.

    Raises:
        WeightsError: if a wanted tensor is missing or of another shape, or one belongs to no known module.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint(weights)
    load_strictly(blank := blank_mapanything(config, modules), checkpoint)
    return blank.model.set_dtype(dtype).to(device)


def blank_mapanything(
    config: MapAnythingConfig | None = None, modules: Iterable[str] = MODULES
) -> Blank[MapAnything]:
    """A MapAnything without weights; the arguments are those of `load_mapanything`."""
    with torch.device("meta"):
        model = MapAnything(config, modules)
    return Blank(model, tuple(f"{name}." for name in KNOWN_MODULES if name not in model.modules_built))


class MapAnythingTeacher(ModelTeacher):
    """Teacher from a MapAnything: patch tokens of its blocks, normed as its heads read them.

    Blocks deeper than asked for are not computed. The first view is the reference; the order of the others
    does not matter.

    Args:
        model: see `ModelTeacher`; heads are not kept.
        options: layer, dtype, name, licence, multi_view, resolution, batch_size: see `ModelTeacher`.
    """

    def __init__(self, model: MapAnything, **options: Any):
        super().__init__(
            model,
            [item for item in model.state_dict().items() if item[0].startswith(TRUNK)],
            width=model.config.embed_dim,
            heads=("head_", "read_layers"),
            identity={"architecture": "mapanything"},
            **options,
        )
        self.model = model.set_dtype(self.dtype)
        for name in set(model.modules_built) - {"trunk"}:
            delattr(model, name)
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        grid = tuple(side // self.patch for side in images_BV3HW.shape[-2:])
        found = self.model.shared(images_BV3HW, layers).layers
        return [found[layer].unflatten(2, grid) for layer in layers]


# ---- by name -----------------------------------------------------------------------------------------------


ARCHITECTURE = Architecture(
    MapAnythingConfig, load_mapanything, MapAnythingTeacher, trunk=("trunk",), depth=MODULES, metric=True
)
record_of_file = ARCHITECTURE.record_of_file


def _record(name: str, repo: str, licence: str, note: str, *, non_commercial: bool) -> ModelRecord:
    return ModelRecord(
        name=name,
        loader=ARCHITECTURE.load_teacher,
        depth=ARCHITECTURE.load_depth,
        confidence=ARCHITECTURE.load_confidence,
        metric=True,
        repo=repo,
        files=("model.safetensors",),
        licence=licence,
        terms=f"https://huggingface.co/{repo}",
        non_commercial=non_commercial,
        config=MapAnythingConfig(),
        parameters=1_136_485_376,
        patch=MapAnythingConfig().patch,
        width=MapAnythingConfig().embed_dim,
        layers=MapAnythingConfig().depth,
        resolution=518,
        multi_view=True,
        note=note,
    )


_NOTE = "MapAnything, several views, metric"
RECORDS = (
    _record("mapanything", "facebook/map-anything-apache", "Apache-2.0", f"{_NOTE}.", non_commercial=False),
    _record(
        "mapanything-nc",
        "facebook/map-anything",
        "CC-BY-NC-4.0",
        f"{_NOTE}; the weights that are not for commercial use.",
        non_commercial=True,
    ),
)
