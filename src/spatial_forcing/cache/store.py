"""Stored teacher features: safetensors shards and a JSON manifest in one folder.

    features/
      source.json                   what these features are of; written first
      manifest.json                 the same with grid and statistics; written last, its presence means
      finished shard-00000.safetensors       tokens (F, V, H, W, C) float16 of frames 0 .. F-1 of the data
      set, then the next shard

A shard is written under a temporary name and renamed, so an interrupted extraction continues where it
stopped and never leaves half a shard under a real name. Reading maps the shards into memory: a batch touches
only its own frames.

Shapes: F frames, B batch, V views, H W rows and columns, C channels.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features

FORMAT = 1
SHARD_FRAMES = 512


class CacheError(SpatialForcingError):
    """A feature cache is missing, broken, or of something else."""


@dataclass(frozen=True)
class Source:
    """What features are of. Two caches with equal sources hold the same features.

    Attributes:
        teacher: registered name of the teacher.
        teacher_fingerprint: of weights, layer, resolution and preprocessing.
        teacher_licence: of the weights.
        dataset: fingerprint of the data set, from :func:`dataset_fingerprint`.
        cameras: camera keys, in the order in which the teacher saw them.
        frames: F of the data set.
    """

    teacher: str
    teacher_fingerprint: str
    teacher_licence: str
    dataset: str
    cameras: tuple[str, ...]
    frames: int


def dataset_fingerprint(root: Path) -> str:
    """A short hash of a LeRobotDataset's description and statistics, which change whenever its frames do."""
    digest = hashlib.sha256()
    for name in ("meta/info.json", "meta/stats.json"):
        path = Path(root) / name
        if not path.is_file():
            raise CacheError(f"{root} is not a LeRobotDataset: it has no {name}.")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_features(
    root: Path,
    source: Source,
    frames: Callable[[int, int], Tensor],
    teacher: Callable[[Tensor], Features],
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda done: None,
) -> Path:
    """Computes and stores the teacher's features of every frame. Continues an interrupted extraction.

    Args:
        root: folder for the cache; made if needed.
        source: what the features are of.
        frames: (start, stop) -> images_BV3HW of these frames, in [0, 1].
        teacher: images_BV3HW -> Features.
        batch_size: frames at a time.
        advance: called with the number of frames just finished, for a progress bar.

    Returns:
        ``root``.

    Raises:
        CacheError: the folder holds features of something else, or the disk is too full (nothing is lost).
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if (root / "manifest.json").is_file():
        FeatureStore(root).check_source(source)
        advance(source.frames)
        return root
    _claim(root, source)
    moments = Moments()
    for start in range(0, source.frames, SHARD_FRAMES):
        stop = min(start + SHARD_FRAMES, source.frames)
        path = root / _shard_name(start)
        if not path.is_file():
            parts = []
            for a in range(start, stop, batch_size):
                images = frames(a, min(a + batch_size, stop))
                parts.append(teacher(images).tokens_BVHWC.to("cpu", torch.float16))
                advance(len(images))
            tokens_FVHWC = torch.cat(parts)
            _check_space(root, tokens_FVHWC, source.frames - start)
            _write_atomically(path, lambda tmp, t=tokens_FVHWC: save_file({"tokens": t}, tmp))
        else:
            tokens_FVHWC = _load_shard(path, stop - start)
            advance(stop - start)
        moments.add(tokens_FVHWC)
    manifest = {
        "format": FORMAT,
        "source": asdict(source),
        "grid": list(tokens_FVHWC.shape[1:]),
        "shard_frames": SHARD_FRAMES,
        "mean": moments.mean_C.tolist(),
        "std": moments.std_C.tolist(),
    }
    _write_atomically(root / "manifest.json", lambda tmp: Path(tmp).write_text(json.dumps(manifest)))
    return root


class Moments:
    """Mean and standard deviation per channel, gathered shard by shard in float64."""

    def __init__(self) -> None:
        self.count, self.sum_C, self.square_C = 0, torch.zeros(()), torch.zeros(())

    def add(self, tokens: Tensor) -> None:
        tokens_NC = tokens.flatten(0, -2).double()
        self.count += len(tokens_NC)
        self.sum_C = self.sum_C + tokens_NC.sum(0)
        self.square_C = self.square_C + tokens_NC.square().sum(0)

    @property
    def mean_C(self) -> Tensor:
        return self.sum_C / self.count

    @property
    def std_C(self) -> Tensor:
        return (self.square_C / self.count - self.mean_C.square()).clamp(min=0).sqrt()


class FeatureStore:
    """Reads stored features. Stands where a teacher would: it has ``width``, ``fingerprint``, ``licence``
    and ``stats``.

    Raises:
        CacheError: no cache there, an unfinished one, one of another version, or a shard is missing or
            truncated.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        manifest = self._manifest()
        self.source = Source(**{**manifest["source"], "cameras": tuple(manifest["source"]["cameras"])})
        self.grid: tuple[int, ...] = tuple(manifest["grid"])
        self.width: int = self.grid[-1]
        self.fingerprint, self.licence = self.source.teacher_fingerprint, self.source.teacher_licence
        self.stats = (torch.tensor(manifest["mean"]), torch.tensor(manifest["std"]))
        self.shards: list[Tensor] = []
        self._shard_frames: int = manifest["shard_frames"]
        for start in range(0, self.source.frames, self._shard_frames):
            frames = min(self._shard_frames, self.source.frames - start)
            self.shards.append(_load_shard(self.root / _shard_name(start), frames))

    def _manifest(self) -> dict[str, Any]:
        path = self.root / "manifest.json"
        if not path.is_file():
            state = (
                "an unfinished feature cache" if (self.root / "source.json").is_file() else "no feature cache"
            )
            raise CacheError(
                f"{self.root} holds {state}. Write it (or finish it) with: spatial-forcing cache"
            )
        try:
            manifest = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise CacheError(
                f"{path} is not readable JSON ({error}). Delete the folder and write it again."
            ) from error
        if manifest.get("format") != FORMAT:
            raise CacheError(
                f"{path} has format {manifest.get('format')}, this version reads {FORMAT}. Write the cache "
                "again."
            )
        return manifest

    def read(self, index_B: Tensor) -> Features:
        """Features of the frames with these data-set indices, float16, on the device of ``index_B``."""
        index = index_B.tolist()
        if index and not 0 <= min(index) <= max(index) < self.source.frames:
            raise CacheError(
                f"Frame {max(index)} was asked for, but the cache at {self.root} has {self.source.frames} "
                "frames: it is of another data set."
            )
        tokens = torch.stack([self.shards[i // self._shard_frames][i % self._shard_frames] for i in index])
        tokens = tokens.to(index_B.device)
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool, device=tokens.device))

    def check(self, *, teacher: str | None, cameras: Iterable[str], dataset_root: Path | None = None) -> None:
        """Raises :class:`CacheError` unless these are features of ``teacher`` for ``cameras`` in this order,
        and of the data set at ``dataset_root`` if one is given."""
        cameras = tuple(cameras)
        if teacher is not None and self.source.teacher != teacher:
            raise CacheError(
                f"The cache at {self.root} is of teacher {self.source.teacher!r}, not {teacher!r}."
            )
        if self.source.cameras != cameras:
            raise CacheError(
                f"The cache at {self.root} has the cameras {list(self.source.cameras)}, the policy has "
                f"{list(cameras)}. Their order matters: the teacher attends across views."
            )
        if dataset_root is not None and (found := dataset_fingerprint(dataset_root)) != self.source.dataset:
            raise CacheError(
                f"The cache at {self.root} is of data set {self.source.dataset}, but {dataset_root} has "
                f"the fingerprint {found}: other frames, or the data set changed since. Write the cache "
                "again."
            )

    def check_source(self, source: Source) -> None:
        """Raises :class:`CacheError` naming what differs, unless the features are of ``source``."""
        _check_same(self.root, self.source, source)


def _check_same(root: Path, found: Source, wanted: Source) -> None:
    a, b = asdict(found), asdict(wanted)
    differing = [f"{key}: {a[key]!r} there, {b[key]!r} wanted" for key in a if a[key] != b[key]]
    if differing:
        raise CacheError(
            f"{root} already holds features of something else ({'; '.join(differing)}). Choose another "
            "folder, or delete this one."
        )


def _claim(root: Path, source: Source) -> None:
    """Notes what an unfinished cache will hold, so that nobody continues it with something else."""
    path = root / "source.json"
    if path.is_file():
        found = json.loads(path.read_text())
        _check_same(root, Source(**{**found, "cameras": tuple(found["cameras"])}), source)
    elif any(root.iterdir()):
        raise CacheError(f"{root} is not empty and holds no feature cache. Choose another folder.")
    else:
        _write_atomically(path, lambda tmp: Path(tmp).write_text(json.dumps(asdict(source))))


def _check_space(root: Path, tokens_FVHWC: Tensor, frames_left: int) -> None:
    per_frame = tokens_FVHWC[0].numel() * tokens_FVHWC.element_size()
    need, free = per_frame * frames_left, shutil.disk_usage(root).free
    if need > free:
        raise CacheError(
            f"The disk under {root} has {free / 2**30:.2f} GiB free, the remaining {frames_left} frames "
            f"need {need / 2**30:.2f} GiB. Finished shards are kept: free some space and run the same "
            "command again."
        )


def _shard_name(start: int) -> str:
    return f"shard-{start // SHARD_FRAMES:05d}.safetensors"


def _load_shard(path: Path, frames: int) -> Tensor:
    if not path.is_file():
        raise CacheError(
            f"The shard {path.name} is missing from {path.parent}. Delete manifest.json and write the "
            "cache again."
        )
    try:
        tokens_FVHWC = load_file(path)["tokens"]
    except (SafetensorError, KeyError) as error:
        raise CacheError(
            f"{path} is damaged ({error}). Delete it and manifest.json, and run again."
        ) from error
    if len(tokens_FVHWC) != frames:
        raise CacheError(
            f"{path} holds {len(tokens_FVHWC)} frames, expected {frames}. Delete it and run again."
        )
    return tokens_FVHWC


def _write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(str(temporary))
        temporary.replace(path)
    except OSError as error:
        raise CacheError(f"Could not write {path} ({error}). What was finished before is kept.") from error
    finally:
        temporary.unlink(missing_ok=True)
