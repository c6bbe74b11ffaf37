"""Caches beside a cache of features: what is known of its tokens besides, frame by frame.

``features/points/`` and ``features/weights/`` have the frames, cameras and grid of the features, and some
numbers for each token. They are written and read as every cache is. ``cache verify`` compares their
checksums; it computes none of them again: a damaged folder is removed, and stored again.

Shapes: B batch, V views, H W rows and columns of tokens, K numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layers import stored_layers
from spatial_forcing.cache.layout import CacheError, Source
from spatial_forcing.cache.spans import Spans
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import Share, Watch, write_features
from spatial_forcing.datasets import open_dataset
from spatial_forcing.features import Features

LICENCE = "as the data set"


class Beside(Protocol):
    """Protocol of what is stored beside features.

    Attributes:
        name: what it is, for tables and errors.
        fingerprint: changes whenever the same frames could have other numbers.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def numbers(self, batch: Mapping[str, Any], cameras: Sequence[str], rows: int, cols: int) -> Tensor:
        """The numbers of a grid of tokens over each camera's image, numbers_BVHWK, finite."""
        ...


def extract_beside(
    what: str,
    dataset: Path | str,
    source: Beside,
    root: Path,
    *,
    batch_size: int = 32,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Stores numbers of a finished cache's tokens beside it. Continues where it was interrupted.

    Args:
        what: the name of their folder.
        dataset: a data set's folder, or its name on the Hub: the one that the features are of.
        source: of the numbers.
        root: folder of the features.
        batch_size: frames at a time.
        share: this process's part.
        watch: callbacks for cost and progress.

    Raises:
        CacheError: there are no features, they are of another data set, or others are there; or the disk is
            full.
        SpatialForcingError: the source does not fit the images.
    """
    frames = open_dataset(dataset)
    features = features_in(root, frames)
    of = features.source
    rows = Spans(of.frames, of.spans)
    _, height, width = features.grid[:3]

    def numbers_of(indices: list[int]) -> Tensor:
        batch = frames_at(frames, [rows.frame_of(row) for row in indices])
        return source.numbers(batch, of.cameras, height, width)

    described = Source(
        teacher=source.name,
        teacher_fingerprint=source.fingerprint,
        teacher_licence=LICENCE,
        dataset=of.dataset,
        cameras=of.cameras,
        frames=of.frames,
        pictures=of.pictures,
        spans=of.spans,
    )
    return write_features(
        root / what,
        described,
        numbers_of,
        lambda numbers_BVHWK: Features(numbers_BVHWK, torch.ones(numbers_BVHWK.shape[:4], dtype=torch.bool)),
        options=CodecOptions("float16"),
        batch_size=batch_size,
        share=share,
        watch=watch,
    )


def features_in(root: Path, frames: Any) -> FeatureStore:
    """The features in a folder, of one of their layers, checked against a data set.

    Raises:
        CacheError: there are none, they are not finished, or they are of another data set.
    """
    features = FeatureStore(next(iter(stored_layers(root).values()), root))
    features.check(teacher=None, cameras=features.source.cameras, dataset_root=Path(frames.root))
    return features


def frames_at(frames: Any, indices: Sequence[int]) -> dict[str, Any]:
    """A batch of some frames of a data set.

    Raises:
        CacheError: one cannot be read.
    """
    try:
        return default_collate([frames[index] for index in indices])
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders, the disk's
        raise CacheError(
            f"Frames {indices[0]} to {indices[-1]} of the data set in {frames.root} cannot be read: "
            f"{type(error).__name__}: {error}. One of its files is damaged or missing."
        ) from error
