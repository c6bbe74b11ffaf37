"""Verification and repair of a layer's feature cache: checksums, and a sample recomputed by the teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F

from spatial_forcing.cache.layout import MANIFEST, CacheError, check_file, read_manifest
from spatial_forcing.cache.passes import Frames, Look, cut, spread, tokens_of
from spatial_forcing.cache.spans import Spans
from spatial_forcing.cache.store import FeatureStore


def broken_files(root: Path, advance: Callable[[int], None] = lambda done: None) -> dict[str, str]:
    """Files of a finished cache that are missing or have another checksum, and what is wrong with each."""
    found = {}
    for name, wanted in read_manifest(root)["sums"].items():
        try:
            check_file(root, name, wanted)
        except CacheError as error:
            found[name] = str(error)
        advance(1)
    return found


def recompute(root: Path, frames: Frames, teacher: Look, count: int = 8, batch_size: int = 32) -> float:
    """Mean cosine between stored tokens and the teacher's recomputed ones, on evenly spread frames.

    Raises:
        CacheError: it is lower than the codec's own losses explain: another teacher, other images.
    """
    store = FeatureStore(root)
    picked = spread(store.source.frames, count)
    layer = store.source.layer
    batches = [(batch, (layer,)) for batch in cut(picked, batch_size)]
    coming = tokens_of(batches, store.source.grid, frames, lambda images, _: {layer: teacher(images)})
    said = torch.cat([tokens[layer] for tokens in coming])
    rows = Spans(store.source.frames, store.source.spans)
    stored = store.read(torch.tensor([rows.frame_of(row) for row in picked])).tokens_BVHWC.float()
    cosine = F.cosine_similarity(stored, said, dim=-1).mean().item()
    promised = store.codec.report["cosine_mean"]
    # A sample this small may lie a little below the mean that was measured when the codec was found.
    if cosine < promised - max(0.01, 2 * (1 - promised)):
        raise CacheError(
            f"The features in {root} are not what the teacher says now: cosine {cosine:.4f} on {len(picked)} "
            f"frames, {promised:.4f} was promised. The teacher or the images have changed: write it again."
        )
    return cosine


def repair(root: Path, names: Sequence[str], write: Callable[[], Path]) -> None:
    """Rewrites exactly the damaged files, and checks them against their old checksums.

    Args:
        root: the cache.
        names: its broken files.
        write: finishes the cache, as ``extract`` with the options it was written with.

    Raises:
        CacheError: the files came out differently.
        Whatever ``write`` raises; then everything is as it was.
    """
    before = read_manifest(root)["sums"]
    with set_aside([root / name for name in (MANIFEST, *names)]):
        write()
    after = read_manifest(root)["sums"]
    differ = [name for name in before if after.get(name) != before[name]]
    if differ:
        raise CacheError(
            f"{', '.join(differ)} came out differently than before: other versions, hardware or threads. The "
            f"cache is whole and its sums are those of now; to have all of it made alike, delete {root} and "
            "write it again."
        )


@contextmanager
def set_aside(paths: Sequence[Path]) -> Iterator[None]:
    """Moves files out of the way while others are written; puts them back if that fails.

    Their names meanwhile are those of temporary files, which a finished cache removes.
    """
    aside = {path: path.with_name(f".{path.name}.aside.tmp") for path in paths if path.exists()}
    for path, other in aside.items():
        path.replace(other)
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        for path, other in aside.items():
            other.replace(path)
        raise
    for other in aside.values():
        other.unlink(missing_ok=True)


def written_with(root: Path) -> dict:
    """The options a finished cache was written with."""
    return read_manifest(root)["claimed"]
