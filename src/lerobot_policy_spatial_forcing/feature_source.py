"""Source of the teacher features for a training step: a feature cache, or the teacher run online.

Shapes: B batch, V views.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_spatial_forcing.forcing_config import AlignmentConfig
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import compose
from spatial_forcing.hosts.lerobot import ShownImages, images_of
from spatial_forcing.hosts.prompted import PACKED_KEY, Packed
from spatial_forcing.on_grid import Given
from spatial_forcing.patches.transforms import affines_of
from spatial_forcing.teachers import FrozenTeacher, load_teacher
from spatial_forcing.teachers.base import named_dtype, stack_views

DEFAULT_TEACHER = "vggt-1b"


class FeatureSource:
    """Source of the teacher features for a training step: a feature cache, or the teacher run online.

    Args:
        config: the options.
        cameras: the policy's names of the cameras to align, and for each the data set's; in the order in
            which the teacher sees them.
        device: where a teacher online runs.
        dataset_root: the data set that stored features must be of, if given.
        packed: the policy's preprocessor packs and crops images, and the batch must say how.
        named: the cameras were named; without names whatever cameras are in a batch are aligned.
        episode_ends: of each episode of the data set the index of the frame after its last; for features of
            later frames.

    Attributes:
        teacher: what an alignment asks: the store, or the teacher online.
        store: the stored features; None with a teacher online.
    """

    def __init__(
        self,
        config: AlignmentConfig,
        cameras: dict[str, str],
        device: str,
        dataset_root: Path | None = None,
        packed: bool = False,
        named: bool = False,
        episode_ends: Tensor | None = None,
    ):
        self.config, self.store, self.cameras, self.packed = config, None, list(cameras), packed
        self.wanted = list(cameras) if named else None
        self.episode_ends = episode_ends
        if config.cache is not None:
            self.store = FeatureStore(
                config.cache,
                layer=config.layer,
                pca_targets=config.pca_targets,
                standardized=bool(config.standardize),
                points=config.points is not None,
                weights=config.token_weights is not None,
            )
            if self.store.weights is not None:
                self.store.weights.check_weights(str(config.token_weights))
            if self.store.points is not None:
                self.store.points.check_points(config.points_from, config.points_frame)
            self.store.check(teacher=config.teacher, cameras=cameras.values(), dataset_root=dataset_root)
            stored = self.store.source.cameras  # in another order where that does not matter to the teacher
            self.cameras.sort(key=lambda name: stored.index(cameras[name]))
            self.store.check_teacher_options(
                layer=config.layer, resolution=config.resolution, dtype=config.dtype
            )
            self.teacher: FrozenTeacher | FeatureStore = self.store
        else:
            check_online(config)
            self.teacher = load_teacher(
                config.teacher or DEFAULT_TEACHER,
                weights=config.teacher_checkpoint,
                resolution=config.resolution,
                layer=-1 if config.layer is None else config.layer,
                dtype=named_dtype(config.dtype),
                device=device,
            )

    def layer_of(self, config: AlignmentConfig) -> int | None:
        """The teacher layer that an alignment with these options asks for; None is the default layer."""
        if config.layer == self.config.layer:
            return None
        return -1 if config.layer is None else config.layer

    def given(self, batch: dict[str, Any], shown: ShownImages) -> Given:
        """The inputs of an alignment for a batch."""
        return Given(
            self(batch, shown),
            self.affine_BV23(batch, shown),
            image_hw=shown.sizes,
            present_BV=shown.present_BV,
            views=shown.view_indices,
        )

    def shown(self, policy: Any, batch: dict[str, Any], stats: dict[str, Any] | None) -> ShownImages:
        """The images to align, in the order in which the teacher sees them."""
        shown = self._packed(batch).cameras if self.needs_names else None
        return images_of(policy, batch, stats, cameras=self.wanted, shown=shown)

    def __call__(self, batch: dict[str, Any], shown: ShownImages) -> Tensor | Features:
        """The images for a teacher online, or the stored features of these images."""
        if self.store is None:
            return stack_views(shown.images)
        if "index" not in batch:
            raise SpatialForcingError(
                "Stored features are looked up by frame `index`, and the batch has none."
            )
        features = self.store.read(self._frames(batch))
        views = self._stored_views(shown)
        if views == list(range(len(self.cameras))):
            return features
        return features.of_views(views)

    def _frames(self, batch: dict[str, Any]) -> Tensor:
        """Indices of the frames whose features are the targets, (B,)."""
        index_B = batch["index"]
        if not self.config.future:
            return index_B
        if self.episode_ends is None or "episode_index" not in batch:
            raise SpatialForcingError(
                f"forcing.future={self.config.future} needs to know where episodes end: a batch with "
                "`episode_index`, and a policy that was made for a data set."
            )
        last_B = self.episode_ends.to(index_B.device)[batch["episode_index"]] - 1
        return torch.minimum(index_B + self.config.future, last_B)

    def affine_BV23(self, batch: dict[str, Any], shown: ShownImages) -> Tensor | None:
        """The affine from the policy's images to those the teacher saw, where they differ."""
        if self.store is None:
            return None
        affine_BV23 = affines_of(batch, list(self.store.source.cameras))
        if affine_BV23 is not None:
            affine_BV23 = affine_BV23[:, self._stored_views(shown)]
        if not self.packed:
            return affine_BV23
        packed_BV23 = self._packed(batch).affine_BV23[:, shown.view_indices]
        return packed_BV23 if affine_BV23 is None else compose(affine_BV23, packed_BV23.to(affine_BV23))

    @property
    def needs_names(self) -> bool:
        """Whether camera names are needed to tell which cameras a prompt shows."""
        return self.packed and (self.store is not None or self.wanted is not None)

    def _packed(self, batch: dict[str, Any]) -> Packed:
        packed = batch.get(PACKED_KEY)
        if not isinstance(packed, Packed):
            raise SpatialForcingError(
                "Stored features, and forcing.cameras, need to know which images the policy's preprocessor "
                "packed and how it cropped them, and this batch does not say: it was prepared before the "
                "policy was made, or by a preprocessor that is not LeRobot's. Train with "
                "lerobot-train, or with the teacher online (without forcing.cache) and all cameras."
            )
        return packed

    def _stored_views(self, shown: ShownImages) -> list[int]:
        """Indices of these images among the stored views."""
        assert shown.names is not None
        unknown = [name for name in shown.names if name not in self.cameras]
        if unknown:
            raise SpatialForcingError(
                f"The batch shows {', '.join(unknown)}, of which nothing is stored. The cache has the "
                f"policy's cameras {', '.join(self.cameras)}; to align only these: "
                f"--policy.forcing.cameras='{json.dumps(self.cameras)}'."
            )
        return [self.cameras.index(name) for name in shown.names]


def episode_ends(meta: Any) -> Tensor:
    """Of each episode of a data set the index of the frame after its last."""
    return torch.tensor([int(end) for end in meta.episodes["dataset_to_index"]])


def check_online(config: AlignmentConfig) -> None:
    """Raises :class:`SpatialForcingError` for options that a teacher online cannot serve."""
    if config.points is not None:
        raise SpatialForcingError(
            f"forcing.points={config.points} needs the 3D point of each token, which spatial-forcing "
            "points stores beside a cache: give forcing.cache, or leave forcing.points out."
        )
    if config.token_weights is not None:
        raise SpatialForcingError(
            f"forcing.token_weights={config.token_weights} needs the weight of each token, which "
            "spatial-forcing weights stores beside a cache: give forcing.cache, or leave it out."
        )
    if config.future:
        raise SpatialForcingError(
            f"forcing.future={config.future} needs stored features: give forcing.cache, or set "
            "forcing.future=0."
        )
    if config.pca_targets:
        raise SpatialForcingError(
            "forcing.pca_targets needs a compressed cache: give forcing.cache, or set "
            "forcing.pca_targets=false."
        )


def sources_of(entries: Sequence[AlignmentConfig], **how: Any) -> list[FeatureSource]:
    """The feature source of every alignment; alignments with the same teacher or cache share one.

    Args:
        entries: the alignments.
        how: the other arguments of :class:`FeatureSource`.

    Raises:
        SpatialForcingError: see :class:`FeatureSource`; of every alignment, also of those that share one.
    """
    found: dict[tuple, FeatureSource] = {}
    sources = []
    for entry in entries:
        if entry.cache is not None:
            turned = entry.pca_targets and entry.standardize
            key = (
                entry.cache,
                entry.teacher,
                entry.layer,
                entry.resolution,
                entry.dtype,
                entry.pca_targets,
                turned,
                entry.points is None,
                entry.points_from,
                entry.points_frame,
                entry.token_weights,
                entry.future,
            )
        else:
            check_online(entry)
            key = (entry.teacher, entry.teacher_checkpoint, entry.resolution, entry.dtype)
        if key not in found:
            found[key] = FeatureSource(entry, **how)
        sources.append(found[key])
    return sources
