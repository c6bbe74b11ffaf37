"""Shards of one layer's cache while it is written, and the manifest that completes it.

Shapes: F frames, V views, H W rows and columns, C channels.
"""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from spatial_forcing.cache.claim import WRITERS
from spatial_forcing.cache.codec import Codec, CodecOptions
from spatial_forcing.cache.layout import (
    CHECKSUM,
    CODEC,
    FORMAT,
    MANIFEST,
    CacheError,
    Source,
    check_claim,
    check_there,
    checksum_of,
    load_codec,
    opened,
    read_manifest,
    shard_name,
    source_record,
)
from spatial_forcing.cache.passes import cut
from spatial_forcing.files import checksum, remove_temporary_files, write_atomically
from spatial_forcing.locks import FolderLock

SHARD_BYTES = 48 * 2**20
MOST_SHARD_FRAMES = 512
# A small data set is cut finer, so that several processes can share it.
LEAST_SHARDS = 32
# Seconds that a process waits for another one's manifest: that reads every shard once.
FINISHING = 600.0
SAFELY: dict[str, Any] = {
    "durable": True,
    "advice": "What was finished before is kept.",
    "error": CacheError,
}


def claim_of(source: Source, options: CodecOptions, batch_size: int) -> dict[str, Any]:
    """The claim of a layer's cache: everything that determines its bytes."""
    return source_record(source) | {"codec": asdict(options), "batch_size": batch_size, "format": FORMAT}


@dataclass(frozen=True)
class Part:
    """The cache of one layer while it is written: its folder, source and claim."""

    root: Path
    source: Source
    claimed: dict[str, Any]

    def is_finished(self) -> bool:
        """Whether the cache is complete.

        Raises:
            CacheError: it is of something else, or was complete and has lost a file.
        """
        if not (self.root / MANIFEST).is_file():
            return False
        manifest = read_manifest(self.root)
        check_claim(self.root, manifest["claimed"], self.claimed)
        for name in manifest["sums"]:
            check_there(self.root, name)
        return True


class Cuts:
    """Division of a part, whose codec is known, into shards."""

    def __init__(self, part: Part):
        self.part = part
        self.codec, self.record = load_codec(part.root)
        views, rows, cols = self.record["grid"][:3]
        self.tokens_per_frame = views * rows * cols
        self.frame_bytes = self.codec.bytes_per_token * self.tokens_per_frame
        self.size = shard_frames(part.source.frames, self.frame_bytes, part.claimed["batch_size"])

    def shards(self) -> list["Shard"]:
        frames = self.part.source.frames
        starts = enumerate(range(0, frames, self.size))
        return [
            Shard(self, self.part.root / shard_name(n), range(start, min(start + self.size, frames)))
            for n, start in starts
        ]


@dataclass(frozen=True)
class Shard:
    """A range of a part's frames, and the file they are stored in."""

    of: Cuts
    path: Path
    frames: range

    def batches(self) -> list[range]:
        """The shard's frames in batches; no batch crosses into the next shard, whoever writes it."""
        return [range(b[0], b[-1] + 1) for b in cut(self.frames, self.of.part.claimed["batch_size"])]


def shard_frames(frames: int, bytes_per_frame: int, batch_size: int) -> int:
    """Number of frames per shard: whole batches, within the limits above."""
    most = min(MOST_SHARD_FRAMES, SHARD_BYTES // bytes_per_frame, max(batch_size, frames // LEAST_SHARDS))
    return max(1, most // batch_size * batch_size or most)


def write_shard(path: Path, codec: Codec, tokens_FVHWC: Tensor) -> None:
    """Writes a shard: encoded frames, and their sums for the statistics of the whole cache."""
    stored = codec.encode(tokens_FVHWC)
    if not all(tensor.isfinite().all() for tensor in stored.values()):
        raise CacheError(
            f"The features reach {tokens_FVHWC.abs().max():.3g}, which half precision cannot hold. Store "
            "them whole: --codec raw."
        )
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    flat = tokens_FVHWC.flatten(0, -2).double()
    tensors |= {"token_sum": flat.sum(0), "token_square": flat.square().sum(0)}
    write_atomically(path, partial(save_file, tensors), **SAFELY)


# ---- the end
# ----------------------------------------------------------------------------------------------------------


def finish(cuts: Cuts) -> None:
    """Completes a part with its manifest if all shards are there; otherwise another process will."""
    if not all(shard.path.is_file() for shard in cuts.shards()):
        return
    # Several processes can find that they are the last; they come here one by one.
    with FolderLock(cuts.part.root, ".finishing", wait=FINISHING):
        if not (cuts.part.root / MANIFEST).is_file():
            write_manifest(cuts)


def write_manifest(cuts: Cuts) -> None:
    """Writes the manifest of a part whose shards are all there, and removes files no longer needed."""
    root, tokens = cuts.part.root, cuts.part.source.frames * cuts.tokens_per_frame
    sums: dict[str, Tensor | float] = {}
    for shard in cuts.shards():
        with opened(shard.path) as file:
            if file.get_slice("codes").get_shape()[0] != len(shard.frames):
                raise CacheError(f"{shard.path} is of other frames. Remove it and write the cache again.")
            for key in ("token_sum", "token_square"):
                sums[key] = sums.get(key, 0.0) + file.get_tensor(key)
    mean = sums["token_sum"] / tokens
    std = (sums["token_square"] / tokens - mean**2).clamp(min=0).sqrt()  # type: ignore[union-attr]
    manifest = {
        "format": FORMAT,
        "claimed": cuts.part.claimed,
        "source": source_record(cuts.part.source),
        "codec": cuts.record,
        "shard_frames": cuts.size,
        "sums": {path.name: checksum(path) for path in [root / CODEC, *(one.path for one in cuts.shards())]},
        "statistics": {"token": {"mean": mean.tolist(), "std": std.tolist()}},  # type: ignore[union-attr]
    }
    text = json.dumps(manifest | {CHECKSUM: checksum_of(manifest)}, indent=1)
    write_atomically(root / MANIFEST, lambda temporary: temporary.write_text(text), **SAFELY)
    # What killed processes left behind; nobody writes any more.
    remove_temporary_files(root)
    for left in root.glob(WRITERS):
        left.unlink(missing_ok=True)
