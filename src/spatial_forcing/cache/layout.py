"""File layout of a feature cache: its files, the record of its source, and checks of both.

    features/
      source.json                what these features are of and how they are stored; written first
      codec.safetensors          the codec, found on a sample of frames
      shard-00000.safetensors    codes of the first frames, then the next shard
      manifest.json              all of it with checksums of every file and of itself; written last, its
                                 presence means finished

Several layers of a teacher are several such folders, ``features/layer-11/``, and each stands by itself.
Files are written under a temporary name and renamed, so that half a file never has a real name.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spatial_forcing.cache.codec import Codec, codec_from
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import check_same, checksum, read_json

FORMAT = 3
SOURCE, CODEC, MANIFEST = "source.json", "codec.safetensors", "manifest.json"
MANIFEST_KEYS = {"claimed": dict, "source": dict, "codec": dict, "shard_frames": int, "sums": dict}
MANIFEST_KEYS |= {"statistics": dict}
CHECKSUM = "checksum"
# Folders of what is known of a cache's tokens beside their features, each a cache of its own.
POINTS, WEIGHTS = "points", "weights"
BESIDE = {POINTS: "cache of points", WEIGHTS: "cache of weights"}
# As a source of weights: whatever is there.
STORED = "stored"
SHARD = re.compile(r"shard-\d{5,}\.safetensors")
COMMAND = "spatial-forcing cache"
WHAT = "feature cache"
# What earlier versions did not note of a teacher: its fingerprint covers what decides the features.
UNRECORDED = ("layer", "layers", "resolution", "dtype", "ordered")


Layer = int | None
"""Number of a teacher's layer, counted from 0; None for a teacher without a choice of layers."""


class CacheError(SpatialForcingError):
    """A feature cache is missing, damaged, or of something else."""


@dataclass(frozen=True)
class Source:
    """Source of stored features: teacher, data set, cameras, grid. Equal sources have equal features.

    Attributes:
        teacher: registered name of the teacher.
        teacher_fingerprint: of weights, layer, resolution and preprocessing.
        teacher_licence: of the weights.
        dataset: fingerprint of the data set, from :func:`dataset_fingerprint`.
        cameras: camera keys, in the order in which the teacher saw them.
        frames: F that are stored.
        images: height and width of each camera's images, pixels.
        grid: rows and columns the teacher's grid was pooled to; None if it is kept.
        layer, layers: which of the teacher's layers, counted from 0, and of how many; None if it has no
            choice, or in caches from before this was recorded.
        resolution: height and width of the images that the teacher saw, pixels; None likewise.
        dtype: of its matrix products; None likewise.
        ordered: whether the features depend on the order of the cameras, or may do.
        spans: which frames of the data set are stored, as ranges [start, stop); None if all are.
    """

    teacher: str
    teacher_fingerprint: str
    teacher_licence: str
    dataset: str
    cameras: tuple[str, ...]
    frames: int
    pictures: tuple[tuple[int, int], ...] = ()
    grid: tuple[int, int] | None = None
    layer: int | None = None
    layers: int | None = None
    resolution: tuple[int, int] | None = None
    dtype: str | None = None
    ordered: bool = True
    spans: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Source":
        cameras, pictures = tuple(saved["cameras"]), tuple(tuple(size) for size in saved["pictures"])
        pairs = {name: saved[name] and tuple(saved[name]) for name in ("grid", "resolution") if name in saved}
        spans = saved.get("spans")
        spans = None if spans is None else tuple(tuple(span) for span in spans)
        return cls(**{**saved, "cameras": cameras, "pictures": pictures, "spans": spans, **pairs})


@dataclass(frozen=True)
class Share:
    """Which part of the shards this process writes: number ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise CacheError(f"A share is rank 0 to world - 1 of world; got {self.rank} of {self.world}.")

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "Share":
        """The share set in the environment by torchrun, accelerate, a SLURM array or job; all by default."""
        names = (
            ("RANK", "WORLD_SIZE"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
        )
        for rank, world in names:
            if rank in variables and world in variables:
                first = variables.get("SLURM_ARRAY_TASK_MIN", "0") if "ARRAY" in rank else "0"
                try:
                    return cls(int(variables[rank]) - int(first), int(variables[world]))
                except ValueError as error:
                    raise CacheError(
                        f"The environment says {rank}={variables[rank]!r} and {world}={variables[world]!r}, "
                        "which should be whole numbers."
                    ) from error
        return cls()


def dataset_fingerprint(root: Path) -> str:
    """Short hash of a LeRobotDataset's description and statistics, which change whenever its frames do."""
    digest = hashlib.sha256()
    for name in ("meta/info.json", "meta/stats.json"):
        path = Path(root) / name
        if not path.is_file():
            raise CacheError(f"{root} is not a LeRobotDataset: it has no {name}.")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_claim(root: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises :class:`CacheError` naming what differs, if a cache claims to hold something else."""
    advice = None
    if root.name in BESIDE:
        advice = f"Delete {root} (the features beside it stay) and run the same command again."
        if found.get("teacher") == wanted.get("teacher") and "teacher_fingerprint" in found:
            advice = f"Another fingerprint is another calibration, model or range. {advice}"
    check_same(
        root, found, wanted, what=what_in(root), unrecorded=UNRECORDED, advice=advice, error=CacheError
    )


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        CacheError: no cache there, an unfinished one, or one of another version.
    """
    path = root / MANIFEST
    if not path.is_file():
        state = f"an unfinished {what_in(root)}" if (root / SOURCE).is_file() else f"no {what_in(root)}"
        raise CacheError(f"{root} holds {state}. Write it (or finish it) with: {command_of(root)}")
    advice = f"Delete it and run {command_of(root)} again: shards are kept."
    manifest = read_json(path, advice, CacheError)
    if manifest.get("format") != FORMAT:
        raise CacheError(
            f"{path} has format {manifest.get('format')}, this version reads {FORMAT}. Write the cache again."
        )
    for key, kind in MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind):
            raise CacheError(f"{path} is damaged: its {key!r} is not what it was. {advice}")
    strange = manifest.keys() - MANIFEST_KEYS.keys() - {"format", CHECKSUM}
    if strange:
        raise CacheError(f"{path} is damaged: no manifest has {', '.join(sorted(strange))}. {advice}")
    # Those of earlier versions have none.
    if CHECKSUM in manifest and manifest[CHECKSUM] != checksum_of(manifest):
        raise CacheError(f"{path} is damaged: its checksum is not that of what it says. {advice}")
    # Files of these names are read, and in a repair replaced.
    for name in manifest["sums"]:
        if name != CODEC and not SHARD.fullmatch(name):
            raise CacheError(f"{path} is damaged: no cache has a file {name!r}. {advice}")
    return manifest


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content without its checksum, independent of text formatting."""
    said = {name: value for name, value in manifest.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def check_there(root: Path, name: str) -> None:
    """Raises :class:`CacheError` unless the file is there."""
    if not (root / name).is_file():
        raise CacheError(f"The file {name} is missing from {root}. {restore(root)}")


def check_file(root: Path, name: str, wanted: str) -> None:
    """Raises :class:`CacheError` unless the file is there and has the checksum in the manifest."""
    check_there(root, name)
    if checksum(root / name) != wanted:
        raise CacheError(f"{root / name} is damaged: its sum is not the one in the manifest. {restore(root)}")


def what_in(root: Path) -> str:
    """What a folder holds, by its name: a feature cache, or points or weights beside one."""
    return BESIDE.get(root.name, WHAT)


def command_of(root: Path) -> str:
    """The command that writes what is in a folder."""
    if root.name not in BESIDE:
        return COMMAND
    of = "--depth <recorded, or pseudo:model>" if root.name == POINTS else "--source <of the weights>"
    return f"spatial-forcing {root.name} --features {root.parent} --dataset <data set> {of}"


def restore(root: Path) -> str:
    """What to do about broken files of a cache. Points and weights are not repaired, but stored again."""
    if root.name in BESIDE:
        return (
            f"Remove {root} (the features beside it stay), and store the {root.name} again: "
            f"{command_of(root)}"
        )
    return f"Restore that file alone with: {COMMAND} verify --out {root} --dataset <data set> --repair"


def opened(path: Path) -> Any:
    """Opens a safetensors file, memory-mapped."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path} cannot be read ({error}).") from error


def load_codec(root: Path) -> tuple[Codec, dict[str, Any]]:
    """Loads the codec of a cache, with the metadata of its file."""
    with opened(root / CODEC) as file:
        try:
            said = json.loads(file.metadata()["codec"])
            return codec_from(said, {name: file.get_tensor(name) for name in file.keys()}), said  # noqa: SIM118
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{root / CODEC} is damaged, or of something else: it has no codec.") from error


def source_record(source: Source) -> dict[str, Any]:
    """The source as JSON data. Without spans for a cache of all frames, and without a word on order where it
    matters: the bytes of such caches thus never changed."""
    said = asdict(source)
    if source.spans is None:
        del said["spans"]
    if source.ordered:
        del said["ordered"]
    return said
