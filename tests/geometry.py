"""From pixels to the world and back, of one image or several; H rows, W columns, N points."""

import numpy as np
import torch

from spatial_forcing.geometry.pinhole import Pinholes, centres
from spatial_forcing.teachers import scene_batches


def unproject(depth_HW: np.ndarray, intrinsics_33: np.ndarray, extrinsics_34: np.ndarray) -> np.ndarray:
    """World point of every pixel, (H, W, 3), from z-depth in metres, as teachers are trained on."""
    maps = (torch.from_numpy(of)[None, None] for of in (depth_HW, intrinsics_33, extrinsics_34))
    return scene_batches.unproject(*maps)[0, 0].numpy()


def project(points_N3: np.ndarray, intrinsics_33: np.ndarray, extrinsics_34: np.ndarray) -> np.ndarray:
    """Pixel coordinates and z-depth (u, v, z) of world points, (N, 3)."""
    camera_N3 = points_N3 @ extrinsics_34[:, :3].T + extrinsics_34[:, 3]
    pixels_N3 = camera_N3 @ intrinsics_33.T
    return np.concatenate([pixels_N3[:, :2] / pixels_N3[:, 2:], camera_N3[:, 2:]], axis=1).astype(np.float32)


def seen_at(cameras: Pinholes, depth_BVhw: torch.Tensor) -> torch.Tensor:
    """The points that the centres of a depth map's cells show: points_BVhw3."""
    return cameras.from_image(centres(*depth_BVhw.shape[-2:]).to(depth_BVhw) * depth_BVhw[..., None])
