"""Depth Anything 3 as a teacher: strict loading of its weights, features of its blocks, its records.

B: batch, V: views, H, W: pixels, h, w: patches, C: twice the width (within the view, then the normed stream).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.teachers.checkpoint import Blank, Checkpoint, load_strictly
from spatial_forcing.teachers.da3 import DA3, MODULES, DA3Config
from spatial_forcing.teachers.model_teacher import Architecture, ModelRecord, ModelTeacher

REFERENCE = "saddle_balanced"
# How the released files begin all names.
PREFIX = "model."
# What they hold beside what is built: GIANT's Gaussians, and ray outputs at coarser scales, never read.
KNOWN_MODULES = (*MODULES, "gs_head", "gs_adapter")
UNREAD = (
    *(f"head.scratch.output_conv1_aux.{scale}." for scale in range(3)),
    *(f"head.scratch.output_conv2_aux.{part}." for part in ("0.0", "0.5", "1", "2")),
)


def load_da3(
    weights: str | Path | Checkpoint,
    config: DA3Config | None = None,
    modules: Iterable[str] = MODULES,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DA3:
    """Loads a Depth Anything 3 from a file or folder with the parameter names of the released checkpoints.

    Args:
        weights: see `Checkpoint`.
        config: sizes of the model; DA3-SMALL by default.
        modules: which of `MODULES` to build and load; the others are not read.
        device, dtype: see `DA3.set_dtype`.

    Raises:
        WeightsError: if a wanted tensor is missing or of another shape, or one belongs to no known module.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint(weights)
    load_strictly(blank := blank_da3(config, modules), checkpoint)
    return blank.model.set_dtype(dtype).to(device)


def blank_da3(config: DA3Config | None = None, modules: Iterable[str] = MODULES) -> Blank[DA3]:
    """A Depth Anything 3 without weights; the arguments are those of `load_da3`."""
    with torch.device("meta"):
        model = DA3(config, modules)
    not_built = [f"{name}." for name in KNOWN_MODULES if name not in (*model.modules_built, "backbone")]
    return Blank(model, (*not_built, *UNREAD), PREFIX)


class DA3Teacher(ModelTeacher):
    """Teacher from a Depth Anything 3: patch tokens of its blocks, as its own heads read them.

    Blocks deeper than asked for are not computed. With three views or more the features do not depend on
    their order; of two, the first is the reference.

    Args:
        model: see `ModelTeacher`; only its backbone is kept.
        options: layer, dtype, name, licence, multi_view, resolution, batch_size: see `ModelTeacher`.
    """

    def __init__(self, model: DA3, **options: Any):
        super().__init__(
            model,
            model.features.state_dict().items(),
            width=2 * model.config.embed_dim,
            heads=("head_", "camera_", "out_layers"),
            identity={"architecture": "da3", "reference": REFERENCE},
            **options,
        )
        self.backbone = model.set_dtype(self.dtype).features
        self.freeze()

    def ordered(self, views: int) -> bool:
        return self.multi_view and views == 2

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        grid = tuple(side // self.patch for side in images_BV3HW.shape[-2:])
        found = self.backbone(images_BV3HW, layers, reference=REFERENCE)
        return [self.backbone.features(layer).unflatten(2, grid) for layer in found]


# ---- by name -----------------------------------------------------------------------------------------------


ARCHITECTURE = Architecture(
    DA3Config,
    load_da3,
    DA3Teacher,
    trunk=("backbone",),
    depth=("backbone", "head"),
    cameras=("cam_dec",),
)
record_of_file = ARCHITECTURE.record_of_file

BASE = DA3Config(embed_dim=768, num_heads=12, head_features=128, head_channels=(96, 192, 384, 768))
LARGE = DA3Config(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    alt_start=8,
    qknorm_start=8,
    rope_start=8,
    out_layers=(11, 15, 19, 23),
    head_features=256,
    head_channels=(256, 512, 1024, 1024),
)
GIANT = DA3Config(
    embed_dim=1536,
    depth=40,
    num_heads=24,
    swiglu=True,
    alt_start=13,
    qknorm_start=13,
    rope_start=13,
    out_layers=(19, 27, 33, 39),
    head_features=256,
    head_channels=(256, 512, 1024, 1024),
)


def _record(size: str, config: DA3Config, parameters: int, *, non_commercial: bool = False) -> ModelRecord:
    repo = f"depth-anything/DA3-{size}"
    return ModelRecord(
        name=f"da3-{size.partition('-')[0].lower()}",
        loader=ARCHITECTURE.load_teacher,
        depth=ARCHITECTURE.load_depth,
        confidence=ARCHITECTURE.load_confidence,
        scene=ARCHITECTURE.load_scene,
        repo=repo,
        files=("model.safetensors",),
        licence="CC-BY-NC-4.0" if non_commercial else "Apache-2.0",
        terms=f"https://huggingface.co/{repo}",
        non_commercial=non_commercial,
        config=config,
        parameters=parameters,
        patch=config.patch,
        width=2 * config.embed_dim,
        layers=config.depth,
        resolution=504,
        multi_view=True,
        note="Depth Anything 3, several views.",
    )


RECORDS = (
    _record("SMALL", DA3Config(), 22_059_008),
    _record("BASE", BASE, 86_583_296),
    # 1.1: trained again after an error in the training of the first release.
    _record("LARGE-1.1", LARGE, 304_373_760, non_commercial=True),
    _record("GIANT-1.1", GIANT, 1_136_489_216, non_commercial=True),
)
