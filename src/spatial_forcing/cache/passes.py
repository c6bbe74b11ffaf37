"""Passes of frames through a teacher, batch by batch, and the sample of frames that codecs are fitted on.

Shapes: F frames, B batch, V views, H W rows and columns, C channels, N tokens.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.cache.layout import CacheError, Layer
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import resample

SAMPLE_FRAMES, HELDOUT_FRAMES = 64, 16
SAMPLE_TOKENS = 40_000

Frames = Callable[[list[int]], Tensor]
"""Indices of frames -> images_BV3HW in [0, 1]."""
Look = Callable[[Tensor], Features]
"""images_BV3HW -> Features: a teacher."""
LookAtLayers = Callable[[Tensor, tuple[Any, ...]], Mapping[Any, Features]]
"""images_BV3HW, layers -> Features of each of these layers: a teacher's ``layers_of``."""
Batch = tuple[Sequence[int], tuple[Layer, ...]]
"""Frame indices of a batch, and the layers wanted for them."""


def tokens_of(
    batches: Sequence[Batch], grid: tuple[int, int] | None, frames: Frames, look: LookAtLayers
) -> Generator[dict[Layer, Tensor]]:
    """Yields, for each batch, tokens_BVHWC of its layers: on the CPU, float32, pooled to ``grid`` if given.

    A batch is decoded while the teacher processes the one before.

    Raises:
        CacheError: the features of a frame are not finite, or not all valid.
    """
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(frames, list(batches[0][0])) if batches else None
        for number, (indices, layers) in enumerate(batches):
            assert coming is not None
            images = coming.result()
            if number + 1 < len(batches):
                coming = ahead.submit(frames, list(batches[number + 1][0]))
            yield {layer: _storable(of, indices, grid) for layer, of in look(images, layers).items()}


def _storable(features: Features, frames: Sequence[int], grid: tuple[int, int] | None) -> Tensor:
    check_storable(features, frames)
    if grid is not None:
        features = resample(features, *smaller(grid, features))
    return features.tokens_BVHWC.float().cpu()


def check_storable(features: Features, frames: Sequence[int]) -> None:
    """Raises :class:`CacheError` if features of these frames are not finite, or not all valid."""
    if not features.valid_BVHW.all():
        raise CacheError(
            "The teacher marks some tokens as not valid, and a cache keeps no such marks. Train with the "
            "teacher online."
        )
    try:
        features.check_finite()
    except SpatialForcingError as error:
        raise CacheError(f"Frames {frames[0]} to {frames[-1]} cannot be stored: {error}") from error


def smaller(grid: tuple[int, int], features: Features) -> tuple[int, int]:
    """Validates ``grid``: raises :class:`CacheError` if it has more rows or columns than the features."""
    rows, cols = features.tokens_BVHWC.shape[2:4]
    if grid[0] > rows or grid[1] > cols:
        raise CacheError(
            f"A grid of {grid[0]} x {grid[1]} is larger than the teacher's, which is {rows} x {cols}: it "
            "would store more numbers that say no more. Keep the teacher's, or name a smaller one."
        )
    return grid


def cut(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Splits ``indices`` into batches; the last may be smaller."""
    return [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]


def spread(count: int, most: int) -> list[int]:
    """Evenly spread integers below ``count``: ``most`` of them, or all."""
    most = min(most, count)
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


def sample_of(frames: int) -> tuple[list[int], list[int]]:
    """Evenly spread frames to fit a codec on, and held-out ones between them to test it."""
    picked = spread(frames, SAMPLE_FRAMES + HELDOUT_FRAMES)
    # Every fifth is held out; a data set of very few frames is its own test.
    heldout = picked[4::5] or picked
    return [i for i in picked if i not in set(heldout)] or picked, heldout


def sampled_tokens(
    coming: Generator[dict[Layer, Tensor]], frames: int
) -> dict[Layer, tuple[Tensor, list[int]]]:
    """Sample of the tokens of each layer, at most SAMPLE_TOKENS, evenly spread over those of ``frames``.

    Returns:
        By layer tokens_NC and the shape VHWC of a frame's.
    """
    kept: dict[Layer, list[Tensor]] = {}
    shapes: dict[Layer, list[int]] = {}
    done = 0
    for tokens in coming:
        for layer, tokens_BVHWC in tokens.items():
            shapes[layer] = list(tokens_BVHWC.shape[1:])
            flat_NC = tokens_BVHWC.flatten(0, -2)
            per_frame = len(flat_NC) // len(tokens_BVHWC)
            chosen = (i - done * per_frame for i in spread(frames * per_frame, SAMPLE_TOKENS))
            kept.setdefault(layer, []).append(flat_NC[[i for i in chosen if 0 <= i < len(flat_NC)]])
        done += len(tokens_BVHWC)
    return {layer: (torch.cat(some), shapes[layer]) for layer, some in kept.items()}
