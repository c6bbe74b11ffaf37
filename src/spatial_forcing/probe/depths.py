"""Depth sources of a probe: depth recorded beside the images, or pseudo depth of a model.

Depth is per camera, in metres, or for models that know no metres (``relative``) in multiples of the median
depth of its image. A map of another size than its image is taken as the same field of view at another
resolution if its aspect ratio is the same within 2 %; it is averaged onto the cells where it is finer than
they are, and the nearest pixel is taken where it is coarser. Another aspect ratio is an error: then it is
not known which part of the image the depth is of.

Shapes: B batch, H W pixels of an image, h w of a depth map.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.frames import latest

SAME_ASPECT = 0.02
MOST_PIXELS = 128  # per side, of pseudo depth that is kept


@dataclass(frozen=True)
class Depths:
    """A depth source of the probe.

    Attributes:
        name: what it is, for tables: "recorded geometry", "pseudo: vggt-1b".
        kind: ``"recorded"`` or ``"pseudo"``.
        relative: whether it is in medians of the image and not in metres.
        of: (batch, cameras) -> depth_Bhw of each camera; 0 or NaN where unknown.
    """

    name: str
    kind: Literal["recorded", "pseudo"]
    relative: bool
    of: Callable[[Mapping[str, Any], Sequence[str]], list[Tensor]]

    @property
    def fingerprint(self) -> str:
        """Changes with the weights of the model that estimates it, or with what was recorded."""
        return getattr(self.of, "fingerprint", "")

    @property
    def unit(self) -> str:
        return "median depth of the image" if self.relative else "m"

    def maps(self, batch: Mapping[str, Any], cameras: Sequence[str], least: int) -> list[Tensor]:
        """Depth maps depth_Bhw of each camera of a batch, at least ``least`` pixels a side.

        Raises:
            ProbeError: a map has another aspect ratio than its image.
        """
        found = []
        for camera, depth_Bhw in zip(cameras, self.of(batch, cameras), strict=True):
            check_aspect(camera, depth_Bhw, latest(batch[camera]))
            found.append(at_least(depth_Bhw.float(), least))
        return found


def check_source(source: str, option: str = "--depth") -> None:
    """Raises :class:`ProbeError` unless a depth source is ``recorded`` or ``pseudo:<model>``."""
    kind, _, model = source.partition(":")
    if source != "recorded" and not (kind == "pseudo" and model):
        near = get_close_matches(kind, ("recorded", "pseudo"), n=1)
        meant = (
            f" Did you mean {':'.join(filter(None, (near[0], model)))}?" if near and kind != near[0] else ""
        )
        raise ProbeError(f"{option} is recorded or pseudo:<model>, got {source!r}.{meant}")


def check_aspect(camera: str, depth_Bhw: Tensor, image_B3HW: Tensor) -> None:
    """Raises :class:`ProbeError` unless a depth map has the aspect ratio of its image."""
    (h, w), (H, W) = depth_Bhw.shape[-2:], image_B3HW.shape[-2:]
    if abs(w * H / (h * W) - 1) > SAME_ASPECT:
        raise ProbeError(
            f"The depth of {camera} is {h} x {w} and its images are {H} x {W}: of another aspect ratio, so "
            "it is not known which part of the image it shows. Crop or pad it like the images when the data "
            "set is made."
        )


def at_least(depth_Bhw: Tensor, least: int) -> Tensor:
    """Upsamples a map (nearest) where a side has fewer than ``least`` pixels."""
    h, w = depth_Bhw.shape[-2:]
    times_h, times_w = (-(-least // side) for side in (h, w))
    return depth_Bhw.repeat_interleave(times_h, -2).repeat_interleave(times_w, -1)


# ---- recorded ----------------------------------------------------------------------------------------------


def recorded(dataset: Any, cameras: Sequence[str]) -> Depths:
    """Recorded depth of a data set: the embedded world's geometry, or LeRobot's depth features.

    Raises:
        ProbeError: there is none, or not of every camera; says what is possible.
    """
    root = Path(dataset.root)
    if (root / "geometry").is_dir() and (root / "demos.json").is_file():
        return Depths("recorded geometry", "recorded", False, _Geometry(root, dataset.meta))
    keys = _depth_keys(dataset.meta, cameras)
    return Depths("recorded", "recorded", False, _DepthFeatures(dataset, keys))


class _Geometry:
    """Reader of the embedded world's depth, one episode at a time."""

    def __init__(self, root: Path, meta: Any):
        self.root, self.views = root, list(meta.camera_keys)
        self._last: tuple[int, Tensor] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of all files of the geometry."""
        found = hashlib.sha256()
        for path in sorted((self.root / "geometry").glob("*.safetensors")):
            found.update(path.name.encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()[:16]

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        frames = zip(batch["episode_index"].tolist(), batch["frame_index"].tolist(), strict=True)
        depth_BVHW = torch.stack([self._episode(episode)[frame] for episode, frame in frames])
        return [depth_BVHW[:, self.views.index(camera)] for camera in cameras]

    def _episode(self, episode: int) -> Tensor:
        if self._last is None or self._last[0] != episode:
            from spatial_forcing.sim.folder import load_geometry

            self._last = (episode, load_geometry(self.root, episode)["depth_TVHW"].float())
        return self._last[1]


class _DepthFeatures:
    """Reader of a LeRobotDataset's depth features, in metres."""

    def __init__(self, dataset: Any, keys: Mapping[str, str]):
        self.keys = keys
        self.scale = {key: _metres(dataset, key) for key in keys.values()}
        # The frames are the data set's, which a cache is of; the unit is a line that may be mended.
        self.fingerprint = repr(sorted(self.scale.items()))

    def __call__(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        found = []
        for key in (self.keys[camera] for camera in cameras):
            depth = batch[key]
            depth = depth[:, -1] if depth.ndim == 5 else depth
            found.append((depth[:, 0] if depth.ndim == 4 else depth).float() * self.scale[key])
        return found


def _metres(dataset: Any, key: str) -> float:
    """Factor that converts a depth feature to metres."""
    feature = dataset.meta.features[key]
    stored = (feature.get("info") or {}).get("depth_unit")
    if feature["dtype"] == "image" and stored is None:
        raise ProbeError(
            f"The depth feature {key} does not say its unit. Set depth_unit to 'm' or 'mm' in its info "
            "(meta/info.json)."
        )
    return 1e-3 if dataset.depth_output_unit == "mm" else 1.0


def _depth_keys(meta: Any, cameras: Sequence[str]) -> dict[str, str]:
    """The depth feature of each camera, by name without the word "depth"."""
    if not meta.depth_keys:
        raise ProbeError(
            "The data set has no depth: neither the embedded world's geometry beside it (spatial-forcing "
            "collect records it), nor LeRobot's depth features. Take pseudo depth of a model instead: "
            "--depth pseudo:vggt-1b (VGGT's depth head), or --depth pseudo:<folder or Hub name of a "
            "transformers depth-estimation model>."
        )
    plain = {_camera_name(key): key for key in meta.depth_keys}
    found = {camera: plain.get(_camera_name(camera)) for camera in cameras}
    missing = [camera for camera, key in found.items() if key is None]
    if missing and len(cameras) == len(meta.depth_keys) == 1:
        return {cameras[0]: meta.depth_keys[0]}
    if missing:
        raise ProbeError(
            f"There is no depth of {', '.join(missing)}: the data set has {', '.join(meta.depth_keys)}. A "
            "camera's depth is found by its name: observation.images.front_depth is that of "
            "observation.images.front. Or take pseudo depth of a model: --depth pseudo:<model>."
        )
    return {camera: str(key) for camera, key in found.items()}


def _camera_name(key: str) -> str:
    words = re.split(r"[._/\-]", key.lower())
    return ".".join(word for word in words if word not in ("observation", "images", "image", "depth"))


# ---- kept --------------------------------------------------------------------------------------------------


def kept_on_disk(depths: Depths, frames: int, folder: Path) -> Depths:
    """Caches depth on disk, computed once for each frame: float16, at most 128 pixels a side.

    Args:
        frames: how many frames the data set has.
        folder: for the file, which takes up to 32 KB per frame and camera.
    """
    files: dict[str, np.memmap] = {}
    done: dict[int, bool] = {}

    def of(batch: Mapping[str, Any], cameras: Sequence[str]) -> list[Tensor]:
        indices = batch["index"].tolist()
        if not all(index in done for index in indices):
            for camera, depth_Bhw in zip(cameras, depths.of(batch, cameras), strict=True):
                small_Bhw = _smaller(depth_Bhw)
                if camera not in files:
                    shape = (frames, *small_Bhw.shape[1:])
                    path = folder / f"{len(files)}.depth"
                    files[camera] = np.memmap(path, np.float16, "w+", shape=shape)
                files[camera][indices] = small_Bhw.half().cpu().numpy()
            done.update(dict.fromkeys(indices, True))
        return [torch.from_numpy(files[camera][indices]).float() for camera in cameras]

    return Depths(depths.name, depths.kind, depths.relative, of)


def _smaller(depth_Bhw: Tensor) -> Tensor:
    factor = MOST_PIXELS / max(depth_Bhw.shape[-2:])
    if factor >= 1:
        return depth_Bhw
    size = [max(1, round(factor * side)) for side in depth_Bhw.shape[-2:]]
    return F.interpolate(depth_Bhw[:, None], size=size, mode="nearest")[:, 0]
