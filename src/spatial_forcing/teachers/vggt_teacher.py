"""VGGT as a teacher: strict loading of its weights, and the patch tokens of one layer as features.

B: batch, V: views, H, W: pixels, h, w: patches, C: twice the embedding width (frame, then global attention).
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from spatial_forcing.teachers.base import FrozenTeacher, digest
from spatial_forcing.teachers.checkpoint import Checkpoint, check_names
from spatial_forcing.teachers.vggt import MODULES, VGGT, VGGTConfig

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
    """A VGGT with the weights of a file or folder, in the names of the released checkpoint.

    Args:
        weights: see `Checkpoint`.
        config: sizes of the model; VGGT-1B by default.
        modules: which of `MODULES` to build and load; the others, and the track head, are not read.
        device, dtype: see `VGGT.set_dtype`.

    Raises:
        WeightsError: if a wanted tensor is missing or of another shape, or one belongs to no known module.
    """
    checkpoint = weights if isinstance(weights, Checkpoint) else Checkpoint(weights)
    with torch.device("meta"):
        model = VGGT(config, modules)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    not_built = [f"{name}." for name in KNOWN_MODULES if name not in model.modules_built]
    check_names(checkpoint.shapes, expected, checkpoint.path, ignored=not_built)
    model.load_state_dict(checkpoint.read(expected), assign=True)
    return model.set_dtype(dtype).to(device)


class VGGTTeacher(FrozenTeacher):
    """Patch tokens of one layer of a VGGT aggregator, special tokens cut off.

    Args:
        model: in float32, as loaded; the fingerprint is taken from it. Only its aggregator is kept.
        layer: 0 to depth - 1, or counted from the end.
        multi_view: whether the views of a scene see each other; if not, each is a scene of its own.
        dtype: of the matrix products, see `VGGT.set_dtype`.
        name, licence, resolution, batch_size: see `FrozenTeacher`.
    """

    def __init__(
        self,
        model: VGGT,
        *,
        name: str,
        licence: str,
        resolution: int | tuple[int, int],
        layer: int = -1,
        multi_view: bool = True,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ):
        config = model.config
        layer = model.aggregator.layer_index(layer)
        heads = ("camera", "dpt")  # settings of the heads do not change the features
        super().__init__(
            name=name,
            width=2 * config.embed_dim,
            patch=config.patch,
            licence=licence,
            multi_view=multi_view,
            resolution=resolution,
            identity={
                "weights": digest(model.aggregator.state_dict().items()),
                "config": {k: v for k, v in asdict(config).items() if not k.startswith(heads)},
                "layer": layer,
            },
            batch_size=batch_size,
        )
        self.layer, self.layers, self.dtype = layer, config.depth, dtype
        self.aggregator = model.set_dtype(dtype).aggregator
        self.freeze()

    def tokens(self, images_BV3HW: Tensor) -> Tensor:
        (tokens_BVNC,) = self.aggregator(images_BV3HW, (self.layer,))
        rows, cols = (side // self.patch for side in images_BV3HW.shape[-2:])
        return tokens_BVNC[:, :, self.aggregator.special :].unflatten(2, (rows, cols))
