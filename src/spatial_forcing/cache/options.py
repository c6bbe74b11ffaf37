"""The options of ``spatial-forcing cache`` and ``cache verify``; ``command.py`` does what they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class Cached:
    """Options shared by writing and verifying a cache."""

    out: Path = Path("features")
    """Folder of the features. An interrupted extraction continues."""
    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub (owner/name)."""
    teacher: str | None = None
    """A registered teacher (vggt-1b for images of the real world, vggt-tiny-sim for the embedded one), or a
    local file or folder. To verify: the cache's if None."""
    teacher_checkpoint: Path | None = None
    """Local weights of a registered teacher, instead of the packaged ones or the Hub's."""
    layer: int | None = None
    """Teacher layer, negative from the end; the last if None. To verify: all of the cache's if None."""
    resolution: int | None = None
    """Side in pixels of the teacher's input images; its own if None. To verify: the cache's if None."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the teacher's matrix products, bfloat16 on GPUs; float32 if None. To verify: the cache's
    if None."""
    decoders: int = 2
    """Threads that decode images while the teacher runs."""
    device: str = "cpu"
    """Device the teacher runs on."""


@dataclass
class Cache(Cached):
    """Compute a teacher's features of a data set once, for training to read. `cache verify` checks them."""

    layers: tuple[int, ...] = ()
    """Several teacher layers in one pass, each readable alone; instead of --layer. Layers that are already
    there are kept."""
    cameras: tuple[str, ...] = ()
    """Camera keys in the policy's order; all of the data set if empty."""
    episodes: tuple[int, ...] = ()
    """Episodes to store; all of the data set if empty. To train on them alone: --dataset.episodes='[...]'."""
    codec: Literal["pca-int8", "float16", "raw"] = "pca-int8"
    """Codec of the stored tokens; raw (float32) is for checks."""
    fidelity: float = 0.99
    """pca-int8: mean cosine to keep between stored and raw tokens."""
    components: int | None = None
    """pca-int8: numbers per token, instead of those that --fidelity asks for."""
    grid: tuple[int, int] | None = None
    """Rows and columns to pool the teacher's grid to; kept if None."""
    batch: int = 32
    """Frames per batch."""

    def run(self) -> None:
        from spatial_forcing.cache.command import write_cache

        write_cache(self)


@dataclass
class CacheVerify(Cached):
    """Check the files of a cache against its manifest's checksums; with --dataset, recompute a sample."""

    repair: bool = False
    """Rewrite exactly the damaged files (needs --dataset)."""

    def run(self) -> None:
        from spatial_forcing.cache.command import verify_cache

        verify_cache(self)
