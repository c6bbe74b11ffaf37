"""Teachers from this package's own models: what VGGT, Depth Anything 3 and MapAnything have in common."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.teachers.base import FrozenTeacher, digest
from spatial_forcing.teachers.model import Model


class ModelTeacher(FrozenTeacher):
    """Base of teachers whose layers are blocks of a model's trunk; subclasses implement `tokens`.

    Args:
        model: in float32, as loaded; the fingerprint is taken from it.
        trunk: name and tensor of what the features depend on.
        width: of the features.
        heads: how those settings begin that do not change the features.
        identity: what else they depend on.
        layer: of `teacher(images)`, 0 to depth - 1, or counted from the end.
        dtype: of the matrix products, see `Model.set_dtype`.
        said: name, licence, multi_view, resolution, batch_size: see `FrozenTeacher`.
    """

    def __init__(
        self,
        model: Model,
        trunk: Iterable[tuple[str, Tensor]],
        *,
        width: int,
        heads: tuple[str, ...],
        identity: Mapping[str, Any],
        layer: int = -1,
        dtype: torch.dtype = torch.float32,
        **said: Any,
    ):
        config, layer = model.config, model.layer_index(layer)
        settings = {name: value for name, value in asdict(config).items() if not name.startswith(heads)}
        weights = digest(trunk)
        super().__init__(
            width=width,
            patch=config.patch,
            identity={**identity, "weights": weights, "config": settings, "layer": layer},
            **said,
        )
        self.layer, self.layers, self.dtype = layer, config.depth, dtype
