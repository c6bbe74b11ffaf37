"""The cameras of the embedded world, as they were recorded beside its demonstrations, frame by frame.

Shapes: B batch, T frames of an episode, V views.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.geometry.cameras import CalibrationError
from spatial_forcing.geometry.pinhole import Pinholes, unit_intrinsics
from spatial_forcing.sim.folder import load_geometry

NOTE, GEOMETRY = "demos.json", "geometry"


def is_recorded(root: Path) -> bool:
    """Whether a folder holds demonstrations of the embedded world with their cameras."""
    return (root / NOTE).is_file() and (root / GEOMETRY).is_dir()


class RecordedCameras:
    """Recorded cameras of demonstrations; the frame is the world's, in which the robot stands still.

    Args:
        root: folder that ``collect`` filled.
        meta: of the data set in it.
    """

    def __init__(self, root: Path, meta: Any):
        self.root, self.views = root, list(meta.camera_keys)
        self.size = tuple(meta.features[self.views[0]]["shape"][:2])
        # Camera moves follow from the specification.
        self.fingerprint = hashlib.sha256((root / NOTE).read_bytes()).hexdigest()[:16]
        self._last: tuple[int, dict[str, Tensor]] | None = None

    def check(self, meta: Any, cameras: Sequence[str]) -> None:
        """Raises :class:`CalibrationError` for a camera that was not recorded."""
        for camera in cameras:
            if camera not in self.views:
                raise CalibrationError(
                    f"{self.root} recorded no camera {camera!r}: it has {', '.join(self.views)}."
                )

    def pinholes(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> Pinholes:
        """The cameras of a batch, one a view."""
        at = [self.views.index(camera) for camera in cameras]
        frames = list(zip(batch["episode_index"].tolist(), batch["frame_index"].tolist(), strict=True))
        intrinsics, extrinsics = (
            torch.stack([self._episode(episode)[name][frame] for episode, frame in frames])[:, at].float()
            for name in ("intrinsics_TV33", "extrinsics_TV34")
        )
        return Pinholes(unit_intrinsics(intrinsics, *self.size), extrinsics)

    def end_effector(self, batch: Mapping[str, Any]) -> Tensor:
        """Where the gripper is, position_B3 in metres: the first numbers of the state."""
        state = batch["observation.state"]
        return (state[:, -1] if state.ndim == 3 else state)[:, :3].float()

    def _episode(self, episode: int) -> dict[str, Tensor]:
        if self._last is None or self._last[0] != episode:
            self._last = (episode, load_geometry(self.root, episode))
        return self._last[1]
