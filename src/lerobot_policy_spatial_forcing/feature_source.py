"""Where a training step of a forced policy gets its teacher features: stored ones, or a teacher online.

Shapes: B batch, V views.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lerobot_policy_spatial_forcing.augment import affines_of
from lerobot_policy_spatial_forcing.crops import PACKED_KEY, Packed
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features, compose
from spatial_forcing.hosts.lerobot import Pictures
from spatial_forcing.teachers import load_teacher
from spatial_forcing.teachers.base import stack_views

if TYPE_CHECKING:
    from lerobot_policy_spatial_forcing.forcing import ForcingConfig

DEFAULT_TEACHER = "vggt-1b"


class FeatureSource:
    """Where a training step gets its teacher features: from stored ones, or from the teacher itself.

    ``packed``: the policy's preprocessor packs and crops pictures, and stored features must know how.
    """

    def __init__(
        self,
        config: "ForcingConfig",
        cameras: list[str],
        device: str,
        dataset_root: Path | None = None,
        packed: bool = False,
    ):
        self.store, self.cameras, self.packed = None, cameras, packed
        if config.cache is not None:
            self.store = FeatureStore(
                config.cache, coefficients=config.coefficients, standardized=config.standardize
            )
            cameras = config.cameras or cameras
            self.store.check(teacher=config.teacher, cameras=cameras, dataset_root=dataset_root)
            self.teacher: Any = self.store
        elif config.coefficients:
            raise SpatialForcingError(
                "forcing.coefficients needs a compressed cache: give forcing.cache, or set "
                "forcing.coefficients=false."
            )
        else:
            self.teacher = load_teacher(
                config.teacher or DEFAULT_TEACHER, weights=config.weights, device=device
            )

    def affine_BV23(self, batch: dict[str, Any]) -> Tensor | None:
        """From the pictures the policy was given to those the teacher saw, where they differ."""
        if self.store is None:
            return None
        affine_BV23 = affines_of(batch, list(self.store.source.cameras))
        if not self.packed:
            return affine_BV23
        views, packed = self._views(batch), batch[PACKED_KEY].affine_BV23
        if affine_BV23 is None:
            return packed
        return compose(affine_BV23[:, views], packed.to(affine_BV23))

    def __call__(self, batch: dict[str, Any], pictures: Pictures) -> Tensor | Features:
        if self.store is None:
            return stack_views(pictures.images)
        if "index" not in batch:
            raise SpatialForcingError(
                "Stored features are looked up by frame `index`, and the batch has none."
            )
        features = self.store.read(batch["index"])
        if not self.packed:
            return features
        views = self._views(batch)
        return Features(features.tokens_BVHWC[:, views], features.valid_BVHW[:, views])

    def _views(self, batch: dict[str, Any]) -> list[int]:
        """Which of the stored views the pictures in the prompt are."""
        packed = batch.get(PACKED_KEY)
        if not isinstance(packed, Packed):
            raise SpatialForcingError(
                "Stored features need to know how the policy's preprocessor cropped its pictures, and this "
                "batch does not say: it was prepared before the policy's configuration was made, or by a "
                "preprocessor that is not LeRobot's. Train with lerobot-train, or with the teacher online "
                "(without forcing.cache)."
            )
        unknown = [name for name in packed.cameras if name not in self.cameras]
        if unknown:
            raise SpatialForcingError(
                f"The prompt shows {', '.join(unknown)}, of which nothing is stored. The policy's cameras "
                f"are: {', '.join(self.cameras)}."
            )
        return [self.cameras.index(name) for name in packed.cameras]
