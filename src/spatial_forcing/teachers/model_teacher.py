"""Teachers from this package's own models: what VGGT, Depth Anything 3 and MapAnything have in common.

B: batch, V: views, H, W: pixels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.teachers.base import FrozenTeacher, digest
from spatial_forcing.teachers.checkpoint import Checkpoint
from spatial_forcing.teachers.described import description_of, record_from
from spatial_forcing.teachers.estimator import Estimator
from spatial_forcing.teachers.hub import fetch
from spatial_forcing.teachers.model import Model
from spatial_forcing.teachers.record import TeacherRecord


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


# ---- by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelRecord(TeacherRecord):
    """Record of a teacher from one of this package's models.

    Attributes:
        config: sizes of the model; None where the weights carry them.
    """

    config: Any = None


@dataclass(frozen=True)
class Architecture:
    """How the teachers of a model are loaded: what the records of its module name as their loaders.

    Attributes:
        config: class of its sizes.
        load: loads it from a checkpoint, as `load(checkpoint, config, modules, device=...)`.
        teacher: class of its teachers.
        trunk, depth: the modules to build for features, and for depth.
        cameras: the modules to build for cameras besides; none if it estimates none.
        metric: whether its depth is in metres.
    """

    config: type
    load: Callable[..., Any]
    teacher: type[ModelTeacher]
    trunk: tuple[str, ...]
    depth: tuple[str, ...]
    cameras: tuple[str, ...] = ()
    metric: bool = False

    def load_teacher(
        self, record: ModelRecord, *, weights: Path | None, device: torch.device | str, **options: Any
    ) -> ModelTeacher:
        """Loads the teacher of a record with its trained weights; the options are those of the class.

        Raises:
            TeacherUnavailableError: the weights cannot be fetched.
            WeightsError: they cannot be read, or do not fit.
        """
        model = self.load(*self.checkpoint_of(record, weights), self.trunk)
        said = {"name": record.name, "licence": record.licence, "multi_view": record.multi_view}
        return self.teacher(model, **said, **options).to(device)

    def load_depth(self, record: ModelRecord, device: torch.device | str) -> Estimator:
        """Loads the model of a record as an estimator of depth: see `TeacherRecord.depth`."""
        model = self.load(*self.checkpoint_of(record), self.depth, device=device).eval()
        return Estimator(model, lambda found: found.depth_BVHW)

    def load_confidence(self, record: ModelRecord, device: torch.device | str) -> Estimator:
        """Loads the model of a record as an estimator of certainty: see `TeacherRecord.confidence`."""
        model = self.load(*self.checkpoint_of(record), self.depth, device=device).eval()
        return Estimator(model, lambda found: found.depth_confidence_BVHW)

    def load_scene(self, record: ModelRecord, device: torch.device | str) -> Estimator:
        """Loads the model of a record as an estimator of depth and cameras: see `TeacherRecord.scene`."""
        modules = (*self.depth, *self.cameras)
        model = self.load(*self.checkpoint_of(record), modules, device=device).eval()
        return Estimator(model, lambda found: (found.depth_BVHW, found.cameras.extrinsics_BV34))

    def checkpoint_of(self, record: ModelRecord, weights: Path | None = None) -> tuple[Checkpoint, Any]:
        """Opens the weights of a record, or local ones in ``weights``, with the sizes of the model."""
        checkpoint = Checkpoint(weights or record.path or fetch(record))
        return checkpoint, record.config or self.config(**description_of(checkpoint)["config"])

    def record_of_file(self, path: Path, said: dict[str, Any]) -> ModelRecord:
        """Builds a record for a file of this package's format, from its description."""
        loaders = {"loader": self.load_teacher, "depth": self.load_depth, "metric": self.metric}
        loaders["confidence"] = self.load_confidence
        if self.cameras:
            loaders["scene"] = self.load_scene
        return record_from(said, path, ModelRecord, **loaders)
