"""Structure scores of teachers on frames of a data set, with bootstrap intervals over its episodes.

Shapes: F frames, V views, h w rows and columns, C channels, E episodes, R resamples of the episodes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatial_forcing.bootstrap import percentile_interval
from spatial_forcing.cache.codec import CodecOptions, fit_codec
from spatial_forcing.cache.extract import Extraction, chosen_cameras, open_source
from spatial_forcing.cache.passes import cut, spread
from spatial_forcing.datasets import open_dataset
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import resample
from spatial_forcing.structure.records import LayerScores, Score
from spatial_forcing.structure.scores import frame_scores, likeness, shares
from spatial_forcing.teachers.base import FrozenTeacher

RESAMPLES = 2000
BATCH = 8
# Tokens of a frame that the codec is fitted to.
CODED = 64


class StructureError(SpatialForcingError, ValueError):
    """Structure scores cannot be computed from this data set, or with these options."""


@dataclass(frozen=True)
class Sample:
    """Sample of a data set's frames, on which teachers are scored.

    Attributes:
        dataset: a folder, or a name on the Hub.
        cameras: its keys, in order.
        indices: of the frames, ascending.
        episodes: of each frame.
        grid: rows and columns that features are pooled to.
    """

    dataset: Path | str
    cameras: tuple[str, ...]
    indices: tuple[int, ...]
    episodes: tuple[int, ...]
    grid: tuple[int, int]


def sample_of(
    dataset: Path | str, frames: int, grid: tuple[int, int] = (8, 8), cameras: Sequence[str] | None = None
) -> Sample:
    """Samples at most ``frames`` frames of a data set, evenly over its episodes and within each.

    Raises:
        DatasetError: there is no such data set.
        UnknownNameError: it has no such camera.
        StructureError: fewer than two frames, there or asked for, or a grid of fewer than 3 x 3 tokens.
    """
    if frames < 2 or min(grid) < 3:
        raise StructureError(
            "Structure scores need two frames and a grid of 3 x 3 tokens at least; got "
            f"{frames} frames and {grid[0]} x {grid[1]}."
        )
    opened = open_dataset(dataset)
    keys = tuple(chosen_cameras(opened, cameras))
    lengths = [int(length) for length in opened.meta.episodes["length"]]
    if sum(lengths) < 2:
        raise StructureError(f"The data set {dataset} has {sum(lengths)} frames; two are needed at least.")
    indices = evenly(lengths, frames)
    starts = np.cumsum([0, *lengths])
    episodes = np.searchsorted(starts, indices, side="right") - 1
    return Sample(dataset, keys, tuple(indices), tuple(int(e) for e in episodes), grid)


def evenly(lengths: Sequence[int], frames: int) -> list[int]:
    """Evenly spread indices of at most ``frames`` frames: equally many per episode, or one each of as many
    episodes as frames."""
    starts = [0, *np.cumsum(lengths).tolist()]
    whole = [e for e, length in enumerate(lengths) if length]
    chosen = [whole[at] for at in spread(len(whole), frames)]
    shares_of = [frames * (k + 1) // len(chosen) - frames * k // len(chosen) for k in range(len(chosen))]
    found = []
    for episode, share in zip(chosen, shares_of, strict=True):
        share = min(share, lengths[episode])
        found += [starts[episode] + (2 * k + 1) * lengths[episode] // (2 * share) for k in range(share)]
    return found


def layer_scores(
    teacher: FrozenTeacher,
    name: str,
    sample: Sample,
    layers: Sequence[int] = (),
    *,
    control: bool = False,
    absrel: Callable[[Tensor], Score | None] = lambda tokens_FVhwC: None,
    progress: Callable[[int], object] = lambda frames: None,
) -> list[LayerScores]:
    """Structure scores of layers of a teacher, from one pass over the frames.

    Args:
        teacher: from ``load_teacher``.
        name: its name in the results.
        sample: the frames.
        layers: the teacher's own if none are named; see :func:`layers_of`.
        control: as its record says.
        absrel: of depth read from tokens of the frames.
        progress: is told how many more frames were looked at.

    Raises:
        NoSuchLayerError: it does not have one of the layers.
        StructureError: its grid is coarser than the one to pool to, or features are not finite.
        CacheError: a frame of the data set cannot be read.
    """
    start, wanted = time.perf_counter(), layers_of(teacher, layers)
    check_grid(teacher, name, sample.grid)
    frames_of, _ = open_source(sample.dataset, teacher, name, Extraction(cameras=sample.cameras))
    tokens: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    own: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
    for indices in cut(sample.indices, BATCH):
        for layer, features in teacher.layers_of(frames_of(list(indices)), wanted).items():
            features.check_finite()
            tokens[layer].append(resample(features, *sample.grid).tokens_BVHWC.float().cpu())
            own_BNC = features.tokens_BVHWC.flatten(1, 3)
            own[layer].append(own_BNC[:, :: max(1, own_BNC.shape[1] // CODED)].float().cpu())
        progress(len(indices))
    seconds = time.perf_counter() - start
    height, width = (side // teacher.patch for side in teacher.resolution)
    return [
        LayerScores(
            teacher=name,
            layer=None if teacher.layers is None else layer,
            width=teacher.width,
            licence=teacher.licence,
            control=control,
            own_grid=[height, width],
            seconds=seconds,
            stored_bytes=stored_bytes(torch.cat(own[layer]), height * width * len(sample.cameras)),
            absrel=absrel(of_FVhwC),
            **scored(of_FVhwC, sample.episodes),
        )
        for layer, of_FVhwC in ((layer, torch.cat(of)) for layer, of in tokens.items())
    ]


def stored_bytes(tokens_FNC: Tensor, count: int) -> int:
    """Bytes of a frame of so many tokens in a cache of the usual fidelity.

    Components are found on every other frame, and their number chosen on the rest.
    """
    codec = fit_codec(CodecOptions("pca-int8"), tokens_FNC[::2].flatten(0, 1), tokens_FNC[1::2].flatten(0, 1))
    return count * codec.bytes_per_token


def layers_of(teacher: FrozenTeacher, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers counted from 0, each once; the one that it was loaded for if none are named, or if there is no
    choice.

    Raises:
        NoSuchLayerError: it does not have one of them.
    """
    if teacher.layers is None or not layers:
        return (teacher.layer or 0,)
    return tuple(dict.fromkeys(teacher.layer_index(layer) for layer in layers))


def check_grid(teacher: FrozenTeacher, name: str, grid: tuple[int, int]) -> None:
    """Raises :class:`StructureError` if the teacher has fewer tokens than the grid: neighbours that were made
    by interpolation are alike."""
    rows, cols = (side // teacher.patch for side in teacher.resolution)
    if grid[0] > rows or grid[1] > cols:
        raise StructureError(
            f"The teacher {name} has {rows} x {cols} tokens per view, fewer than the grid of {grid[0]} x "
            f"{grid[1]} that all are compared on. Name a smaller --grid, or leave this teacher out."
        )


def scored(tokens_FVhwC: Tensor, episodes: Sequence[int]) -> dict[str, Score]:
    """All structure scores of tokens, by name, with intervals over episodes.

    Scores of frames are averaged over the frames, shares of variance computed from all; both again in
    resamples of the episodes, the same for all teachers.

    Args:
        tokens_FVhwC: of the frames.
        episodes: of each frame. With one alone there are no intervals.
    """
    by_frame = frame_scores(tokens_FVhwC)
    products = likeness(tokens_FVhwC, episodes)
    weights_RF = resampled_weights(episodes)

    def all_of(weights_RF: Tensor) -> dict[str, np.ndarray]:
        means = {
            key.removesuffix("_F"): weights_RF @ value.double() for key, value in by_frame._asdict().items()
        }
        return {key: value.numpy() for key, value in (means | shares(products, weights_RF)._asdict()).items()}

    frames = len(tokens_FVhwC)
    once = all_of(torch.full((1, frames), 1 / frames, dtype=torch.float64))
    drawn = None if weights_RF is None else all_of(weights_RF)
    return {key: _score(value[0], None if drawn is None else drawn[key]) for key, value in once.items()}


def resampled_weights(episodes: Sequence[int]) -> Tensor | None:
    """Bootstrap weights of the frames, summing to 1, in resamples of the episodes; None for one episode."""
    names, of_frame = np.unique(np.asarray(episodes), return_inverse=True)
    if len(names) < 2:
        return None
    E = len(names)
    times_RE = np.random.default_rng(0).multinomial(E, np.full(E, 1 / E), size=RESAMPLES)
    times_RF = torch.from_numpy(times_RE[:, of_frame]).double()
    return times_RF / times_RF.sum(1, keepdim=True)


def _score(value: Any, drawn_R: np.ndarray | None) -> Score:
    if not np.isfinite(value):
        return Score(value=None)
    # A resample of one episode again and again has nothing between episodes.
    finite = np.array([]) if drawn_R is None else drawn_R[np.isfinite(drawn_R)]
    if not len(finite):
        return Score(value=float(value))
    low, high = percentile_interval(finite)
    return Score(value=float(value), low=low, high=high)
