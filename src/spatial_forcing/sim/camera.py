"""Cameras: pose on a sphere around a point, intrinsics and extrinsics, and random jitter.

N views or points, H rows, W columns. World axes are MuJoCo's (metres, z up). Camera axes are OpenCV's (x
right, y down, z forward): the pixel (u, v) with depth z is at `inv(K) @ (u, v, 1) * z` in the camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Vec3 = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A camera that looks at a point.

    Attributes:
        name: what the view is called, for instance in `observation.images.<name>`.
        lookat: the point in the middle of the image, world, metres.
        azimuth: heading of the viewing direction around z, degrees; 90 looks along +y.
        elevation: pitch of the viewing direction, degrees; negative looks down.
        distance: from the camera to `lookat`, metres.
        fov: vertical field of view, degrees. Pixels are square.
    """

    name: str
    lookat: Vec3
    azimuth: float
    elevation: float
    distance: float
    fov: float = 45.0

    @property
    def forward(self) -> np.ndarray:
        """Unit viewing direction in the world, (3,) float64."""
        azimuth, elevation = np.deg2rad([self.azimuth, self.elevation])
        return np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )

    @property
    def position(self) -> np.ndarray:
        """Optical centre in the world, (3,) float64, metres."""
        return np.asarray(self.lookat) - self.distance * self.forward

    def intrinsics_33(self, height: int, width: int) -> np.ndarray:
        """Pinhole matrix K in pixels, float32; the centre of the first pixel is at (0.5, 0.5)."""
        focal = 0.5 * height / np.tan(0.5 * np.deg2rad(self.fov))
        return np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]], dtype=np.float32)

    @property
    def extrinsics_34(self) -> np.ndarray:
        """World-to-camera [R | t], float32: `x_camera = R @ x_world + t`."""
        z = self.forward
        x = np.cross(z, [0.0, 0.0, 1.0])
        x /= np.linalg.norm(x)
        rotation_33 = np.stack([x, np.cross(z, x), z])
        translation_3 = -rotation_33 @ self.position
        return np.concatenate([rotation_33, translation_3[:, None]], axis=1).astype(np.float32)


# Half widths of the training range that cameras are moved by, at most, where they are to be outside it.
BEYOND = 1.6


@dataclass(frozen=True)
class Jitter:
    """Camera jitter: half widths of uniform moves in degrees, metres (distance, look-at), degrees (fov)."""

    azimuth: float = 25.0
    elevation: float = 12.0
    distance: float = 0.15
    lookat: float = 0.0
    fov: float = 0.0

    def __call__(self, camera: Camera, rng: np.random.Generator, *, beyond: bool = False) -> Camera:
        """Returns `camera` moved at random; always draws seven numbers, so that streams stay aligned.

        Args:
            camera: to move.
            rng: random numbers.
            beyond: move it out of the range, by 1 to `BEYOND` half widths to either side in every way.
        """
        moves = rng.uniform(-1.0, 1.0, 7)
        if beyond:
            moves = np.sign(moves) + (BEYOND - 1) * moves
        a, e, d, f, *shift = moves
        x, y, z = np.asarray(camera.lookat) + self.lookat * np.asarray(shift)
        return replace(
            camera,
            azimuth=camera.azimuth + a * self.azimuth,
            elevation=camera.elevation + e * self.elevation,
            distance=camera.distance + d * self.distance,
            fov=camera.fov + f * self.fov,
            lookat=(float(x), float(y), float(z)),
        )


def default_cameras() -> tuple[Camera, Camera]:
    """The standard pair, "left" and "right" as seen from the front of the table, facing the robot."""
    lookat = (0.0, 0.66, 0.18)
    return (
        Camera("left", lookat, azimuth=-125.0, elevation=-28.0, distance=0.95),
        Camera("right", lookat, azimuth=-55.0, elevation=-28.0, distance=0.95),
    )


def stack_matrices(cameras: Sequence[Camera], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (N, 3, 3) and extrinsics (N, 3, 4) of several cameras, float32."""
    intrinsics_N33 = np.stack([camera.intrinsics_33(height, width) for camera in cameras])
    extrinsics_N34 = np.stack([camera.extrinsics_34 for camera in cameras])
    return intrinsics_N33, extrinsics_N34
