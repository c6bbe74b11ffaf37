"""A cache of two layers that are cut into shards of different length; stored in a moment."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spatial_forcing.cache import shards
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layout import Source
from spatial_forcing.cache.write import write_features, write_layers
from spatial_forcing.features import Features

FRAMES, WIDTH = 40, 16
LOW, HIGH = 3, 7  # a layer that four components hold, and one that takes twelve
PCA = CodecOptions("pca-int8")


def table(layer: int) -> Tensor:
    """tokens_FVHWC of a layer, of few or of many directions."""
    random_ = torch.Generator().manual_seed(layer)
    rank = 3 if layer == LOW else WIDTH
    mixing = torch.randn(rank, WIDTH, generator=random_)
    return torch.randn(FRAMES, 2, 2, 2, rank, generator=random_) @ mixing + layer


TABLES = {layer: table(layer) for layer in (LOW, HIGH, 1)}


class Teacher:
    """Features of several layers, one look at a time; stops after ``limit`` frames."""

    def __init__(self, limit: int = 10**9):
        self.seen, self.asked, self.limit = 0, set(), limit

    def layers_of(self, images: Tensor, layers: tuple[int, ...]) -> dict[int, Features]:
        self.seen += len(images)
        self.asked |= set(layers)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        index = (images[:, 0, 0, 0, 0] * 100).round().long()
        valid = torch.ones(len(index), 2, 2, 2, dtype=torch.bool)
        return {layer: Features(TABLES[layer][index], valid) for layer in layers}

    def of(self, layer: int) -> Callable[[Tensor], Features]:
        return lambda images: self.layers_of(images, (layer,))[layer]


class Camera:
    """Images that say which frame they are of; counts how often a frame is decoded."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, indices: list[int]) -> Tensor:
        self.read += len(indices)
        return torch.tensor(indices).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4) / 100


def source(layer: int, **changes) -> Source:
    of = Source("t", f"f{layer}", "Apache-2.0", "d1", ("left", "right"), FRAMES, layer=layer, layers=9)
    return replace(of, **changes)


def sources(*layers: int, **changes) -> dict[int, Source]:
    return {layer: source(layer, **changes) for layer in layers}


def small_shards(patch: pytest.MonkeyPatch) -> None:
    """Shards of 16 and of 4 frames for LOW and HIGH: 48 and 112 bytes per frame."""
    patch.setattr(shards, "SHARD_BYTES", 800)
    patch.setattr(shards, "LEAST_SHARDS", 1)


def write(root: Path, *layers: int, teacher: Teacher | None = None, **options) -> Path:
    options = {"options": PCA, "batch_size": 4} | options
    look = (teacher or Teacher()).layers_of
    return write_layers(root, sources(*layers), options.pop("frames", Camera()), look, **options)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def alone(root: Path, layer: int, batch_size: int = 4, options: CodecOptions = PCA) -> dict[str, bytes]:
    """What a cache of one layer holds."""
    write_features(root, source(layer), Camera(), Teacher().of(layer), options=options, batch_size=batch_size)
    return contents(root)
