"""The 3D points that the tokens of a view show, in the robot's frame, from depth and calibrated cameras.

Shapes: B batch, V views, H W pixels of a depth map, h w rows and columns of tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.geometry.cameras import CameraSource
from spatial_forcing.geometry.pinhole import Pinholes
from spatial_forcing.geometry.surface import GAP, LEAST_SHARE, surface_points
from spatial_forcing.probe.depth import FAR
from spatial_forcing.probe.depths import Depths

FRAMES = ("robot", "end-effector", "first-camera", "camera")


@dataclass(frozen=True)
class PointSource:
    """Points of the tokens of a data set's frames.

    Attributes:
        depths: in metres.
        cameras: where the cameras are.
        frame: of the points: "robot" (its base, or whatever the calibration is in), "end-effector" (the same
            axes, from the end effector on), "first-camera" or "camera" (each view's own).
        far: metres; what is farther has no point.

    Raises:
        UnknownNameError: no such frame.
    """

    depths: Depths
    cameras: CameraSource
    frame: str = "robot"
    far: float = FAR

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise UnknownNameError("frame of points", self.frame, FRAMES)

    @property
    def name(self) -> str:
        """What the points are, for tables."""
        return f"points of {self.depths.name}, {self.frame} frame"

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same frames could have other points."""
        of = (self.depths.name, self.depths.fingerprint, self.cameras.fingerprint)
        says = (*of, self.frame, self.far, LEAST_SHARE, GAP)
        return hashlib.sha256(repr(says).encode()).hexdigest()[:16]

    def points(self, batch: Mapping[str, Any], cameras: Sequence[str], rows: int, cols: int) -> Tensor:
        """The points that a grid of tokens over each camera's image shows, not a number where not known.

        Args:
            batch: of the data set.
            cameras: its keys, one a view.
            rows, cols: h and w.

        Returns:
            points_BVhw3, metres, float32.
        """
        maps = self.depths.maps(batch, cameras, max(rows, cols))
        pinholes = in_frame(self.frame, self.cameras.pinholes(batch, cameras))
        views = [
            surface_points(depth_BHW[:, None], pinholes.of_view(view), rows, cols, self.far)
            for view, depth_BHW in enumerate(maps)
        ]
        points_BVhw3 = torch.cat(views, 1)
        if self.frame == "end-effector":
            points_BVhw3 = points_BVhw3 - self.cameras.end_effector(batch)[:, None, None, None]
        return points_BVhw3

    def numbers(self, batch: Mapping[str, Any], cameras: Sequence[str], rows: int, cols: int) -> Tensor:
        """The points with their certainty, as numbers that can be stored: points_BVhw4."""
        points_BVhw3 = self.points(batch, cameras, rows, cols)
        known_BVhw1 = points_BVhw3.isfinite().all(-1, keepdim=True)
        return torch.cat([torch.where(known_BVhw1, points_BVhw3, 0.0), known_BVhw1.float()], dim=-1)


def in_frame(frame: str, pinholes: Pinholes) -> Pinholes:
    """The same cameras with extrinsics from another frame: the first camera's, or each camera's own."""
    extrinsics_BV34 = pinholes.extrinsics_BV34
    if frame == "camera":
        extrinsics_BV34 = torch.eye(3, 4).to(extrinsics_BV34).expand_as(extrinsics_BV34)
    if frame == "first-camera":
        R_BV33, t_BV3 = extrinsics_BV34[..., :3], extrinsics_BV34[..., 3]
        # x_v = R_v R_0^T (x_0 - t_0) + t_v
        to_BV33 = R_BV33 @ R_BV33[:, :1].mT
        to_BV3 = t_BV3 - (to_BV33 @ t_BV3[:, :1, :, None])[..., 0]
        extrinsics_BV34 = torch.cat([to_BV33, to_BV3[..., None]], dim=-1)
    return pinholes._replace(extrinsics_BV34=extrinsics_BV34)
