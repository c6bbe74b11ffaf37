"""Writing a feature cache: resumable at any moment, shared by any number of processes without a coordinator.

Every process takes each ``world``-th shard. Which frames are in a shard, how they are batched and what the
codec is follow from the folder's first two files alone, so the finished cache has the same bytes whoever
wrote which part, and however often they were killed.

Shapes: F frames, B batch, V views, H W rows and columns, C channels, K stored numbers a token, N tokens.
"""

import json
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from spatial_forcing.cache.claim import WRITERS, writing
from spatial_forcing.cache.codec import Codec, CodecOptions, codec_from, codec_record, fit_codec
from spatial_forcing.cache.layout import (
    CODEC,
    FORMAT,
    MANIFEST,
    CacheError,
    Share,
    Source,
    check_claim,
    check_there,
    opened,
    read_manifest,
    shard_name,
    source_record,
)
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_space, checksum, create_once, remove_temporary_files, write_atomically
from spatial_forcing.grid import Features, resample
from spatial_forcing.locks import FolderLock

SHARD_BYTES = 48 * 2**20
MOST_SHARD_FRAMES = 512
# A small data set is cut finer, so that several processes can share it.
LEAST_SHARDS = 32
SAMPLE_FRAMES, HELDOUT_FRAMES = 64, 16
SAMPLE_TOKENS = 40_000
# Seconds that a process waits for another one's manifest: that reads every shard once.
FINISHING = 600.0
KEPT = "What was finished before is kept."
SPACE = "Finished shards are kept: free some space and run the same command again."
SAFELY: dict[str, Any] = {"durable": True, "advice": KEPT, "error": CacheError}

Frames = Callable[[list[int]], Tensor]
"""Indices of frames -> images_BV3HW in [0, 1]."""
Look = Callable[[Tensor], Features]
"""images_BV3HW -> Features: a teacher."""


@dataclass(frozen=True)
class Plan:
    """What a cache will cost, known before the first shard.

    Attributes:
        frames, views: of the data set; ``share`` of the frames are this process's, ``mine`` of them not there
            yet.
        raw_bytes: the whole grid in bfloat16.
        stored_bytes: of the whole cache.
        seconds_per_frame: measured on the sample that the codec was found on; None if that was there already.
        codec: its record: kind, components, what is lost.
    """

    frames: int
    views: int
    share: int
    mine: int
    raw_bytes: int
    stored_bytes: int
    seconds_per_frame: float | None
    codec: dict[str, Any]


def write_features(
    root: Path,
    source: Source,
    frames: Frames,
    teacher: Look,
    *,
    options: CodecOptions | None = None,
    share: Share | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda done: None,
    announce: Callable[[Plan], None] = lambda plan: None,
) -> Path:
    """Computes and stores the teacher's features of every frame, or of this process's share of them.

    Args:
        root: folder for the cache; made if needed. What is there of the same cache is not computed again.
        source: what the features are of.
        frames: the pictures of some frames.
        teacher: what looks at them.
        options: how to store; float16 by default.
        share: which part to write; everything by default.
        batch_size: frames at a time. Part of what decides the bytes, as batched arithmetic rounds
            differently.
        advance: called with the number of frames just finished, for a progress bar.
        announce: called once with what it will cost, before the first shard.

    Returns:
        ``root``. The cache is finished once all processes are: ``manifest.json`` is there then.

    Raises:
        CacheError: the folder holds features of something else or cannot be written to, another process
            writes the same share, the disk is too full, or a number makes no sense. Nothing that was finished
            is lost; if nothing was, nothing is left in the folder.
    """
    root, share, options = Path(root), share or Share(), options or CodecOptions()
    check_numbers(batch_size, source.grid)
    if source.frames < 1:
        raise CacheError("The data set has no frames.")
    claimed = source_record(source) | {"codec": asdict(options), "batch_size": batch_size, "format": FORMAT}
    if (root / MANIFEST).is_file():
        manifest = read_manifest(root)
        check_claim(root, manifest["claimed"], claimed)
        for name in manifest["sums"]:
            check_there(root, name)
        advance(source.frames)
        return root
    with writing(root, claimed, share):
        codec, seconds = shared_codec(root, source, options, frames, teacher, batch_size)
        grid = load_codec(root)[1]["grid"]
        per_frame = grid[0] * grid[1] * grid[2]
        size = shard_frames(source.frames, codec.bytes_per_token * per_frame, batch_size)
        shards = enumerate(range(0, source.frames, size))
        mine = [(root / shard_name(n), range(start, min(start + size, source.frames))) for n, start in shards]
        mine = mine[share.rank :: share.world]
        missing = [(path, indices) for path, indices in mine if not path.is_file()]
        announce(
            Plan(
                frames=source.frames,
                views=grid[0],
                share=sum(len(indices) for _, indices in mine),
                mine=sum(len(indices) for _, indices in missing),
                raw_bytes=2 * codec.width * per_frame * source.frames,
                stored_bytes=codec.bytes_per_token * per_frame * source.frames,
                seconds_per_frame=seconds,
                codec=load_codec(root)[1],
            )
        )
        needed = codec.bytes_per_token * per_frame * min(size * len(missing), source.frames)
        check_space(root, needed, SPACE, CacheError)
        advance(sum(len(indices) for _, indices in mine) - sum(len(indices) for _, indices in missing))
        write_shards(missing, codec, source, frames, teacher, batch_size, advance)
        finish(root, claimed, size, source)
    return root


def check_numbers(batch_size: int, grid: Sequence[int] | None, decoders: int = 1) -> None:
    """Raises :class:`CacheError` for numbers that make no sense, before anything is written."""
    for what, number in (
        ("A batch has at least one frame", batch_size),
        ("Decoding takes a thread", decoders),
    ):
        if number < 1:
            raise CacheError(f"{what}; got {number}.")
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise CacheError(f"A grid has at least one row and one column; got {' x '.join(map(str, grid))}.")


def shard_frames(frames: int, bytes_per_frame: int, batch_size: int) -> int:
    """How many frames a shard has: whole batches, within the limits above."""
    most = min(MOST_SHARD_FRAMES, SHARD_BYTES // bytes_per_frame, max(batch_size, frames // LEAST_SHARDS))
    return max(1, most // batch_size * batch_size or most)


def tokens_of(
    batches: Sequence[Sequence[int]], source: Source, frames: Frames, teacher: Look
) -> Generator[Tensor]:
    """tokens_BVHWC of each batch on the CPU, in float32, pooled to the source's grid.

    A batch is decoded while the teacher looks at the one before.

    Raises:
        CacheError: the features of a frame are not finite, or not all valid.
    """
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(frames, list(batches[0])) if batches else None
        for number in range(len(batches)):
            assert coming is not None
            images = coming.result()
            if number + 1 < len(batches):
                coming = ahead.submit(frames, list(batches[number + 1]))
            features = teacher(images)
            check_storable(features, batches[number])
            if source.grid is not None:
                features = resample(features, *smaller(source.grid, features))
            yield features.tokens_BVHWC.float().cpu()


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
    """``grid``, or a :class:`CacheError` if it is larger than that of the features in rows or columns."""
    rows, cols = features.tokens_BVHWC.shape[2:4]
    if grid[0] > rows or grid[1] > cols:
        raise CacheError(
            f"A grid of {grid[0]} x {grid[1]} is larger than the teacher's, which is {rows} x {cols}: it "
            "would store more numbers that say no more. Keep the teacher's, or name a smaller one."
        )
    return grid


def cut(indices: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """``indices`` in batches; the last may be smaller."""
    return [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]


def write_shards(
    shards: list[tuple[Path, range]],
    codec: Codec,
    source: Source,
    frames: Frames,
    teacher: Look,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Computes and writes some shards. No batch crosses from one to the next, whoever writes that one."""
    batches = [batch for _, indices in shards for batch in cut(indices, batch_size)]
    # Closed here, so that an error does not leave the decoding thread behind.
    with closing(tokens_of(batches, source, frames, teacher)) as coming:
        for path, indices in shards:
            parts = []
            for batch in cut(indices, batch_size):
                parts.append(next(coming))
                advance(len(batch))
            write_shard(path, codec, torch.cat(parts))


def shared_codec(
    root: Path, source: Source, options: CodecOptions, frames: Frames, teacher: Look, batch_size: int
) -> tuple[Codec, float | None]:
    """The codec of this cache, found on evenly spread frames by whichever process comes first.

    And the seconds a frame took, if it was found here and now.
    """
    path, seconds = root / CODEC, None
    if not path.is_file():
        picked = spread(source.frames, SAMPLE_FRAMES + HELDOUT_FRAMES)
        # Every fifth is held out; a data set of very few frames is its own test.
        heldout = picked[4::5] or picked
        sample = [i for i in picked if i not in set(heldout)] or picked
        first = torch.cat(list(tokens_of(cut(heldout, batch_size), source, frames, teacher)))
        start = time.perf_counter()
        tokens = torch.cat(list(tokens_of(cut(sample, batch_size), source, frames, teacher)))
        seconds = (time.perf_counter() - start) / len(sample)
        codec = fit_codec(options, thinned(tokens), thinned(first))
        grid = list(first.shape[1:])
        said = json.dumps(codec_record(codec, options) | {"grid": grid})
        tensors = codec.tensors() or {"none": torch.zeros(1)}
        create_once(path, lambda temporary: save_file(tensors, temporary, {"codec": said}), error=CacheError)
    return load_codec(root)[0], seconds


def load_codec(root: Path) -> tuple[Codec, dict[str, Any]]:
    """The codec of a cache and what its file says."""
    with opened(root / CODEC) as file:
        try:
            said = json.loads(file.metadata()["codec"])
            return codec_from(said, {name: file.get_tensor(name) for name in file.keys()}), said  # noqa: SIM118
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{root / CODEC} is damaged, or of something else: it has no codec.") from error


def spread(frames: int, count: int) -> list[int]:
    """``count`` frames evenly spread over all, or all of them."""
    count = min(count, frames)
    return [round(i * (frames - 1) / max(1, count - 1)) for i in range(count)]


def thinned(tokens_FVHWC: Tensor) -> Tensor:
    """At most SAMPLE_TOKENS tokens, evenly spread: tokens_NC."""
    tokens_NC = tokens_FVHWC.flatten(0, -2)
    return tokens_NC[spread(len(tokens_NC), SAMPLE_TOKENS)]


def write_shard(path: Path, codec: Codec, tokens_FVHWC: Tensor) -> None:
    """Stores some frames, with what the statistics of the whole cache need to know of them."""
    stored = codec.encode(tokens_FVHWC)
    if not all(tensor.isfinite().all() for tensor in stored.values()):
        raise CacheError(
            f"The features reach {tokens_FVHWC.abs().max():.3g}, which half precision cannot hold. Store "
            "them whole: --codec raw."
        )
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    flat = tokens_FVHWC.flatten(0, -2).double()
    tensors |= {"token_sum": flat.sum(0), "token_square": flat.square().sum(0)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary), **SAFELY)


def finish(root: Path, claimed: dict[str, Any], size: int, source: Source) -> None:
    """Writes the manifest if all shards are there; otherwise another process will."""
    names = [shard_name(number) for number in range(-(-source.frames // size))]
    if not all((root / name).is_file() for name in names):
        return
    # Several processes can find that they are the last; they come here one by one.
    with FolderLock(root, ".finishing", wait=FINISHING):
        if not (root / MANIFEST).is_file():
            write_manifest(root, names, claimed, size, source)


def write_manifest(root: Path, names: list[str], claimed: dict[str, Any], size: int, source: Source) -> None:
    """Writes the manifest of a cache whose shards are all there, and removes what nobody needs now."""
    tokens = 0
    sums: dict[str, Tensor | float] = {}
    for name in names:
        with opened(root / name) as file:
            tokens += file.get_slice("codes").get_shape()[0]
            for key in ("token_sum", "token_square"):
                sums[key] = sums.get(key, 0.0) + file.get_tensor(key)
    grid = load_codec(root)[1]["grid"]
    tokens *= grid[0] * grid[1] * grid[2]
    mean = sums["token_sum"] / tokens
    std = (sums["token_square"] / tokens - mean**2).clamp(min=0).sqrt()  # type: ignore[union-attr]
    statistics = {"token": {"mean": mean.tolist(), "std": std.tolist()}}  # type: ignore[union-attr]
    manifest = {
        "format": FORMAT,
        "claimed": claimed,
        "source": source_record(source),
        "codec": load_codec(root)[1],
        "shard_frames": size,
        "sums": {name: checksum(root / name) for name in [CODEC, *names]},
        "statistics": statistics,
    }
    text = json.dumps(manifest, indent=1)
    write_atomically(root / MANIFEST, lambda temporary: temporary.write_text(text), **SAFELY)
    # What killed processes left behind; nobody writes any more.
    remove_temporary_files(root)
    for left in root.glob(WRITERS):
        left.unlink(missing_ok=True)
