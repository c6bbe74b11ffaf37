"""3D points that the cells of a view show: what an oracle policy is given beside its images.

N views or frames, H rows, W columns, c cells per side. Axes as in ``camera.py``; metres.
"""

import numpy as np

FARTHEST = 3.0  # metres along the viewing axis: beyond is no table, no robot and nothing to reach


def cell_points(
    depth_NHW: np.ndarray, intrinsics_N33: np.ndarray, extrinsics_N34: np.ndarray, cells: int
) -> np.ndarray:
    """World coordinates of what the pixel at the centre of each cell shows.

    Args:
        depth_NHW: along the viewing axis, metres.
        intrinsics_N33: pixels.
        extrinsics_N34: world to camera.
        cells: c, cells per side of each image.

    Returns:
        points_Ncc3, float32.
    """
    height, width = depth_NHW.shape[1:]
    row_c, col_c = ((np.arange(cells) + 0.5) * side / cells for side in (height, width))
    z_Ncc = depth_NHW[:, row_c.astype(int)[:, None], col_c.astype(int)].astype(np.float32).clip(max=FARTHEST)
    pixel_cc3 = np.stack([*np.meshgrid(col_c, row_c), np.ones((cells, cells))], axis=-1)
    ray_Ncc3 = np.einsum("nij,rcj->nrci", np.linalg.inv(intrinsics_N33.astype(np.float64)), pixel_cc3)
    camera_Ncc3 = ray_Ncc3 * z_Ncc[..., None]
    rotation_N33, translation_N3 = extrinsics_N34[..., :3], extrinsics_N34[..., 3]
    shifted_Ncc3 = camera_Ncc3 - translation_N3[:, None, None]
    return np.einsum("nji,nrcj->nrci", rotation_N33, shifted_Ncc3).astype(np.float32)
