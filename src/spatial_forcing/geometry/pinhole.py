"""Pinhole cameras: projection of points into images, and the points that pixels show.

The frame is the robot's base, or another that all cameras of a set share; metres. Camera axes are OpenCV's
(x right, y down, z forward). Places in an image are in unit coordinates, as in ``spatial_forcing.grid``:
(0, 0) is its upper left corner, (1, 1) its lower right one, so that nothing here depends on a resolution.

Shapes: B batch, V views, N points, h w rows and columns of a map.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pinholes(NamedTuple):
    """Cameras of a batch of frames.

    Attributes:
        intrinsics_BV33: K, from camera coordinates to unit coordinates of the image.
        extrinsics_BV34: [R | t], from the shared frame to the camera: ``x_camera = R x + t``.
    """

    intrinsics_BV33: Tensor
    extrinsics_BV34: Tensor

    @property
    def centres_BV3(self) -> Tensor:
        """Where the cameras are, in the shared frame."""
        return centres_of(self.extrinsics_BV34)

    def of_view(self, view: int) -> "Pinholes":
        """The cameras of one view."""
        return Pinholes(self.intrinsics_BV33[:, view : view + 1], self.extrinsics_BV34[:, view : view + 1])

    def project(self, points_BVN3: Tensor) -> tuple[Tensor, Tensor]:
        """Places of points in the images, and their depth.

        Returns:
            place_BVN2 (x, y) in unit coordinates, meaningless where depth_BVN, metres along the viewing axis,
            is not above zero.
        """
        R_BV33, t_BV3 = self.extrinsics_BV34[..., :3], self.extrinsics_BV34[..., 3]
        camera_BVN3 = points_BVN3 @ R_BV33.mT + t_BV3[..., None, :]
        image_BVN3 = camera_BVN3 @ self.intrinsics_BV33.mT
        depth_BVN = image_BVN3[..., 2]
        return image_BVN3[..., :2] / depth_BVN[..., None].abs().clamp(min=1e-9), depth_BVN

    def from_image(self, image_BVhw3: Tensor) -> Tensor:
        """The points, in the shared frame, that are at d (x, y, 1) in the images: points_BVhw3.

        Args:
            image_BVhw3: (d x, d y, d) with (x, y) in unit coordinates and d in metres along the viewing axis.
        """
        camera_BVhw3 = image_BVhw3 @ self.intrinsics_BV33.inverse().mT[:, :, None]
        R_BV33, t_BV3 = self.extrinsics_BV34[..., :3], self.extrinsics_BV34[..., 3]
        return (camera_BVhw3 - t_BV3[:, :, None, None]) @ R_BV33[:, :, None]


def centres_of(extrinsics_BV34: Tensor) -> Tensor:
    """Where cameras are, centres_BV3, in the frame from which their extrinsics are."""
    R_BV33, t_BV3 = extrinsics_BV34[..., :3], extrinsics_BV34[..., 3]
    return -(R_BV33.mT @ t_BV3[..., None])[..., 0]


def turns_between(extrinsics_BV34: Tensor, others_BV34: Tensor) -> Tensor:
    """By how many degrees, degrees_BVV, two sets of the same cameras disagree on how each pair is turned
    against each other; the frames of the sets may differ."""
    relative_BVV33, others_BVV33 = (
        R_BV33[:, :, None] @ R_BV33[:, None].mT for R_BV33 in (extrinsics_BV34[..., :3], others_BV34[..., :3])
    )
    trace_BVV = (relative_BVV33 * others_BVV33).sum((-2, -1))  # of the one times the other's inverse
    return torch.rad2deg(torch.arccos(((trace_BVV - 1) / 2).clamp(-1, 1)))


def centres(h: int, w: int) -> Tensor:
    """Centres of the cells of a grid over an image, homogeneous: (h, w, 3) of (x, y, 1), unit coordinates."""
    y_h, x_w = (torch.arange(n) + 0.5 for n in (h, w))
    y_hw, x_hw = torch.meshgrid(y_h / h, x_w / w, indexing="ij")
    return torch.stack([x_hw, y_hw, torch.ones_like(x_hw)], dim=-1)


def unit_intrinsics(intrinsics_33: Tensor, height: float, width: float) -> Tensor:
    """K in unit coordinates, from K in pixels of images of this size (the first pixel's corner is (0, 0))."""
    return intrinsics_33 / intrinsics_33.new_tensor([[width], [height], [1.0]])
