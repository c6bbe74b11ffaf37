"""Cameras of LIBERO's images as policies see them: upright, and mirrored left to right.

LIBERO renders images upside down. LeRobot, like OpenVLA and the public data sets, flips both axes: upright
is what comes out, but mirrored. No rotation takes a camera to its mirror image; the mirror is in the
intrinsics, and the extrinsics stay those of the camera:

    u' = W - u      K' = [[-fx, 0, W - cx], [0, fy, cy], [0, 0, 1]]

u in pixels, the first pixel's corner at 0. All that reads a camera here takes such a K: pixel -> ray is
K'^-1.

Shapes: H W pixels.
"""

import numpy as np

# MuJoCo's camera looks along its -z, y up; OpenCV's along z, y down.
_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def as_policies_see(raw: np.ndarray) -> np.ndarray:
    """An image or a depth map as policies see it, from the one that the renderer gives, (H, W, ...)."""
    return raw[::-1, ::-1]


def intrinsics_33(fovy: float, height: int, width: int) -> np.ndarray:
    """K in pixels, float64, of an image as policies see it: mirrored, so its focal length in x is below zero.

    Args:
        fovy: vertical field of view, degrees.
        height, width: of the image.
    """
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(fovy))
    return mirrored(np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1.0]]), width)


def mirrored(intrinsics_33: np.ndarray, width: int) -> np.ndarray:
    """K of an image of this width that has been mirrored left to right."""
    to_mirror_33 = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    return to_mirror_33 @ intrinsics_33


def extrinsics_34(position_3: np.ndarray, rotation_33: np.ndarray) -> np.ndarray:
    """[R | t] from the world to the camera, OpenCV's axes, float64.

    Args:
        position_3: of the camera in the world, metres.
        rotation_33: MuJoCo's camera axes in the world, as columns.
    """
    R_33 = (rotation_33 @ _TO_OPENCV).T
    return np.concatenate([R_33, -(R_33 @ position_3)[:, None]], axis=1)
