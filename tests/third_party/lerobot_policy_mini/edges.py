"""A teacher without weights: how strong the edges of each patch are, in two layers of different coarseness.

Shapes: B batch, V views, H W pixels, h w patches, C channels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.teachers import FrozenTeacher, TeacherRecord

PATCH, CELLS, LAYERS = 14, 2, 2


class EdgeTeacher(FrozenTeacher):
    """Mean absolute differences to the right and down, in 2 x 2 cells of each patch and three colours."""

    def __init__(
        self, *, name: str, licence: str, resolution: int | tuple[int, int], layer: int, batch_size: int
    ):
        super().__init__(
            name=name,
            width=3 * 2 * CELLS**2,
            patch=PATCH,
            licence=licence,
            multi_view=False,
            resolution=resolution,
            identity={"edges": 1, "layer": layer % LAYERS},
            batch_size=batch_size,
        )
        self.layer, self.layers = layer % LAYERS, LAYERS
        self.freeze()

    def tokens(self, images_BV3HW: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        return [self._edges(images_BV3HW, reach=1 + 2 * layer) for layer in layers]

    def _edges(self, images_BV3HW: Tensor, reach: int) -> Tensor:
        B, V, _, H, W = images_BV3HW.shape
        right, down = (images_BV3HW - images_BV3HW.roll(-reach, axis) for axis in (-1, -2))
        edges_b6HW = torch.cat([right, down], dim=2).abs().flatten(0, 1)
        cells_b6hw = F.adaptive_avg_pool2d(edges_b6HW, (H // PATCH * CELLS, W // PATCH * CELLS))
        return F.pixel_unshuffle(cells_b6hw, CELLS).movedim(1, -1).unflatten(0, (B, V))


def load_edges(
    record: TeacherRecord,
    *,
    weights: Path | None,
    resolution: int | tuple[int, int],
    layer: int,
    dtype: torch.dtype,
    device: torch.device | str,
    batch_size: int,
) -> EdgeTeacher:
    said = {"name": record.name, "licence": record.licence, "resolution": resolution}
    return EdgeTeacher(**said, layer=layer, batch_size=batch_size)


RECORD = TeacherRecord(
    name="edges",
    loader="lerobot_policy_mini.edges:load_edges",
    licence="MIT",
    terms="https://opensource.org/license/mit",
    resolution=112,
    takes_weights=False,
    control=True,
    note="Control: the edges of each patch.",
)
