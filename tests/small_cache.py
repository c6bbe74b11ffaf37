"""A feature cache of eleven frames in short shards, by a teacher that is told from its features."""

import pytest
import torch

from spatial_forcing.cache import shards
from spatial_forcing.cache.store import Source
from spatial_forcing.features import Features

SOURCE = Source("t", "f1", "Apache-2.0", "d1", ("left", "right"), frames=11)


def small_shards(patch: pytest.MonkeyPatch) -> None:
    """Shards of four frames."""
    patch.setattr(shards, "MOST_SHARD_FRAMES", 4)
    patch.setattr(shards, "LEAST_SHARDS", 1)


def frames(indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4) / 100


class Teacher:
    """Features that say which frame and view they are of; fails after ``limit`` frames."""

    def __init__(self, limit: int = 10**9):
        self.seen, self.limit = 0, limit

    def __call__(self, images: torch.Tensor) -> Features:
        self.seen += len(images)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        view_V = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
        tokens = images[:, :, :1, :2, :2].permute(0, 1, 3, 4, 2) * 100 + view_V / 2
        return Features(tokens.expand(-1, -1, -1, -1, 5), torch.ones(len(images), 2, 2, 2, dtype=torch.bool))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def contents(root) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}
