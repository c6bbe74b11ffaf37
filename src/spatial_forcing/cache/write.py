"""Writing a feature cache: resumable at any moment, shared by any number of processes without a coordinator.

Every process takes each ``world``-th shard. Which frames are in a shard, how they are batched and what the
codec is follow from the folder's first two files alone, so the finished cache has the same bytes whoever
wrote which part, and however often they were killed. Several layers are several caches that are written in
one pass over the frames: each has the bytes that it has when it is written alone.

Shapes: F frames, B batch, V views, H W rows and columns, C channels, K stored numbers per token.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from spatial_forcing.cache.claim import check_one, check_several, writing
from spatial_forcing.cache.codec import CodecOptions, codec_record, fit_codec
from spatial_forcing.cache.layers import layer_folder
from spatial_forcing.cache.layout import CODEC, CacheError, Layer, Share, Source
from spatial_forcing.cache.passes import (
    Frames,
    Look,
    LookAtLayers,
    cut,
    sample_of,
    sampled_tokens,
    tokens_of,
)
from spatial_forcing.cache.shards import Cuts, Part, Shard, claim_of, finish, write_shard
from spatial_forcing.files import check_space, create_once

SPACE = "Finished shards are kept: free some space and run the same command again."


@dataclass(frozen=True)
class Plan:
    """Cost of a cache, known before the first shard.

    Attributes:
        frames, views: of the data set; ``share`` of the frames are this process's, ``mine`` of them not there
            yet.
        raw_bytes: the whole grids of all layers in bfloat16.
        stored_bytes: of the whole cache.
        seconds_per_frame: measured on the sample that the codecs were found on; None if they were there.
        codecs: by layer its record: kind, components, what is lost.
    """

    frames: int
    views: int
    share: int
    mine: int
    raw_bytes: int
    stored_bytes: int
    seconds_per_frame: float | None
    codecs: dict[Layer, dict[str, Any]]


@dataclass(frozen=True)
class Watch:
    """Callbacks for the cost and progress of writing.

    Attributes:
        announce: called once with what it will cost, before the first shard.
        advance: called with the number of frames just finished, for a progress bar.
    """

    announce: Callable[[Plan], None] = lambda plan: None
    advance: Callable[[int], None] = lambda done: None


def write_features(
    root: Path,
    source: Source,
    frames: Frames,
    teacher: Look,
    *,
    options: CodecOptions | None = None,
    batch_size: int = 32,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Computes and stores the teacher's features of all frames, or of this process's share of them.

    Args:
        root: folder for the cache; made if needed. What is there of the same cache is not computed again.
        source: what the features are of.
        frames: the images of some frames.
        teacher: what looks at them.
        options: how to store; float16 by default.
        batch_size: frames at a time. Part of what decides the bytes, as batched arithmetic rounds
            differently.
        share: which part to write; everything by default.
        watch: callbacks for cost and progress.

    Returns:
        ``root``. The cache is finished once all processes are: ``manifest.json`` is there then.

    Raises:
        CacheError: the folder holds features of something else or cannot be written to, another process
            writes the same share, the disk is too full, or a number makes no sense. Nothing that was finished
            is lost; if nothing was, nothing is left in the folder.
    """
    options = options or CodecOptions()
    part = Part(Path(root), source, claim_of(source, options, batch_size))
    check_numbers(batch_size, source.grid)
    check_one(part.root)
    pass_over(
        [part], frames, lambda images, _: {source.layer: teacher(images)}, share or Share(), watch or Watch()
    )
    return part.root


def write_layers(
    root: Path,
    sources: Mapping[int, Source],
    frames: Frames,
    look: LookAtLayers,
    *,
    options: CodecOptions | None = None,
    batch_size: int = 32,
    share: Share | None = None,
    watch: Watch | None = None,
) -> Path:
    """Computes and stores features of several layers in one pass, in ``root/layer-<number>`` for each.

    Other layers that are there stay as they are.

    Args:
        root, frames, options, batch_size, share, watch: see :func:`write_features`.
        sources: by layer, what its features are of.
        look: a teacher's ``layers_of``.

    Raises:
        CacheError: as for :func:`write_features`; or a layer that is there is of something else.
    """
    options = options or CodecOptions()
    parts = {
        layer: Part(layer_folder(Path(root), layer), source, claim_of(source, options, batch_size))
        for layer, source in sorted(sources.items())
    }
    for source in sources.values():
        check_numbers(batch_size, source.grid)
    check_several(Path(root), {layer: part.claimed for layer, part in parts.items()})
    pass_over(list(parts.values()), frames, look, share or Share(), watch or Watch())
    return Path(root)


def check_numbers(batch_size: int, grid: Sequence[int] | None, decoders: int = 1) -> None:
    """Raises :class:`CacheError` for invalid numbers, before anything is written."""
    for what, number in (
        ("A batch has at least one frame", batch_size),
        ("Decoding takes a thread", decoders),
    ):
        if number < 1:
            raise CacheError(f"{what}; got {number}.")
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise CacheError(f"A grid has at least one row and one column; got {' x '.join(map(str, grid))}.")


# ---- the pass
# ----------------------------------------------------------------------------------------------------------


def pass_over(parts: list[Part], frames: Frames, look: LookAtLayers, share: Share, watch: Watch) -> None:
    """Writes the missing shards of this process's share, and completes the parts that lack nothing then."""
    if parts[0].source.frames < 1:
        raise CacheError("The data set has no frames.")
    begun = [part for part in parts if not part.is_finished()]
    if not begun:
        watch.advance(parts[0].source.frames)
        return
    with ExitStack() as held:
        for part in begun:
            held.enter_context(writing(part.root, part.claimed, share))
        seconds = find_codecs(begun, frames, look)
        cuts = [Cuts(part) for part in parts]
        mine = shards_of(cuts, share)
        missing = [shard for shard in mine if not shard.path.is_file()]
        plan = plan_of(cuts, mine, missing, seconds)
        watch.announce(plan)
        needed = sum(len(shard.frames) * shard.of.frame_bytes for shard in missing)
        check_space(begun[0].root, needed, SPACE, CacheError)
        watch.advance(plan.share - plan.mine)
        write_shards(missing, frames, look, watch.advance)
        for one in cuts:
            if one.part in begun:
                finish(one)


def shards_of(cuts: list[Cuts], share: Share) -> list[Shard]:
    """This process's shards. Those of different layers hold the same frames as far as their sizes allow, so
    that a frame passes through the teacher once."""
    stretch = max(one.size for one in cuts)
    every = [shard for one in cuts for shard in one.shards()]
    return [one for one in every if one.frames.start // stretch % share.world == share.rank]


def by_batch(shards: list[Shard]) -> dict[range, list[Shard]]:
    """The batches of the shards, in order, each with the shards that it belongs to."""
    found: dict[range, list[Shard]] = {}
    for shard in shards:
        for batch in shard.batches():
            found.setdefault(batch, []).append(shard)
    return dict(sorted(found.items(), key=lambda item: (item[0].start, item[0].stop)))


def plan_of(cuts: list[Cuts], mine: list[Shard], missing: list[Shard], seconds: float | None) -> Plan:
    """Cost of a pass over the missing shards."""
    frames = cuts[0].part.source.frames
    return Plan(
        frames=frames,
        views=cuts[0].record["grid"][0],
        share=sum(map(len, by_batch(mine))),
        mine=sum(map(len, by_batch(missing))),
        raw_bytes=sum(2 * one.codec.width * one.tokens_per_frame for one in cuts) * frames,
        stored_bytes=sum(one.frame_bytes for one in cuts) * frames,
        seconds_per_frame=seconds,
        codecs={one.part.source.layer: one.record for one in cuts},
    )


def find_codecs(parts: list[Part], frames: Frames, look: LookAtLayers) -> float | None:
    """Fits the codecs that parts lack, on evenly spread frames; the first process to finish saves them.

    Returns:
        Seconds that a frame took; None if all codecs were there.
    """
    missing = {part.source.layer: part for part in parts if not (part.root / CODEC).is_file()}
    if not missing:
        return None
    any_part = next(iter(missing.values()))

    def sampled(indices: list[int]) -> dict[Layer, tuple[Tensor, list[int]]]:
        batches = [(batch, tuple(missing)) for batch in cut(indices, any_part.claimed["batch_size"])]
        return sampled_tokens(tokens_of(batches, any_part.source.grid, frames, look), len(indices))

    sample, heldout = sample_of(any_part.source.frames)
    tests = sampled(heldout)
    start = time.perf_counter()
    samples = sampled(sample)
    seconds = (time.perf_counter() - start) / len(sample)
    for layer, part in missing.items():
        options, (heldout_NC, shape) = CodecOptions(**part.claimed["codec"]), tests[layer]
        codec = fit_codec(options, samples[layer][0], heldout_NC)
        said = json.dumps(codec_record(codec, options) | {"grid": shape})
        save = partial(save_file, codec.tensors() or {"none": torch.zeros(1)}, metadata={"codec": said})
        create_once(part.root / CODEC, save, error=CacheError)
    return seconds


def write_shards(
    shards: list[Shard], frames: Frames, look: LookAtLayers, advance: Callable[[int], None]
) -> None:
    """Computes and writes some shards in one pass over their frames."""
    batches = by_batch(shards)
    wanted = [(batch, tuple(one.of.part.source.layer for one in of)) for batch, of in batches.items()]
    made: dict[Path, list[Tensor]] = {shard.path: [] for shard in shards}
    # Closed here, so that an error does not leave the decoding thread behind.
    with closing(
        tokens_of(wanted, shards[0].of.part.source.grid if shards else None, frames, look)
    ) as coming:
        for (batch, of), tokens in zip(batches.items(), coming, strict=True):
            advance(len(batch))
            for shard in of:
                made[shard.path].append(tokens[shard.of.part.source.layer])
                if batch.stop == shard.frames.stop:
                    write_shard(shard.path, shard.of.codec, torch.cat(made.pop(shard.path)))
