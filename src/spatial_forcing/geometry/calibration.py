"""Calibration of a data set's cameras: where each of them is, and where the end effector is.

``Calibration.read`` reads it from a file beside the data set (``calibration_file.py`` shows one). Metres and
radians; the frame is the robot's base, or the one that the end effector's positions are in. A camera on the
end effector moves with it:

    x_camera = R x_end_effector + t,   x_base = Q x_end_effector + p
    x_camera = R Q^T x_base + (t - R Q^T p)

Lenses are pinholes: undistort images that are not. Half a pixel, by which conventions for the principal
point differ, is not minded.

Shapes: B batch, V views, n numbers of a rotation.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.geometry.cameras import CalibrationError
from spatial_forcing.geometry.columns import EXTRINSICS, INTRINSICS, Column
from spatial_forcing.geometry.matrices import (
    ROTATIONS,
    Fault,
    extrinsics_fault,
    intrinsics_fault,
    position_fault,
)
from spatial_forcing.geometry.pinhole import Pinholes, unit_intrinsics

Matrix = tuple[tuple[float, ...], ...]
Mount = Literal["base", "end_effector"]
SAME_ASPECT = 0.02


@dataclass(frozen=True)
class Turned:
    """The column that holds the end effector's rotation, Q.

    Attributes:
        column: its numbers.
        form: how it is written, of ``ROTATIONS``.
    """

    column: Column
    form: str


@dataclass(frozen=True)
class CalibratedCamera:
    """A camera: matrices, or the columns that hold them.

    Attributes:
        size: height and width, in pixels, of the images that the intrinsics are of.
        intrinsics: K in these pixels, 3 x 3.
        extrinsics: [R | t] from what it is mounted on to the camera, 3 x 4.
        on: what it is mounted on; the base is all that does not move, in its frame.
    """

    size: tuple[int, int]
    intrinsics: Matrix | Column
    extrinsics: Matrix | Column
    on: Mount = "base"


@dataclass(frozen=True)
class Calibration:
    """The cameras of a calibration file; a ``CameraSource``. ``read`` checks all that it says.

    Attributes:
        name: the file's.
        cameras: by camera key of the data set.
        position: the column of the end effector's position.
        rotation: that of its rotation, for cameras that are on it.
    """

    name: str
    cameras: Mapping[str, CalibratedCamera]
    position: Column | None = None
    rotation: Turned | None = None

    @classmethod
    def read(cls, path: Path | str) -> "Calibration":
        """Reads a calibration file.

        Raises:
            CalibrationError: it cannot be read, or something in it cannot be; with file and line.
        """
        from spatial_forcing.geometry.calibration_file import read_calibration

        return read_calibration(Path(path))

    @property
    def fingerprint(self) -> str:
        """Hash of the numbers and columns, whatever their order or spelling: 16 hexadecimal digits."""
        return _hash({name: value for name, value in asdict(self).items() if name != "name"})

    def check(self, meta: Any, cameras: Sequence[str]) -> None:
        """See ``CameraSource``: cameras, columns, and the shape of images."""
        for key in cameras:
            if key not in meta.camera_keys:
                raise CalibrationError(f"{self.name}: {UnknownNameError('camera', key, meta.camera_keys)}")
            if key not in self.cameras:
                strange = [one for one in self.cameras if one not in meta.camera_keys]
                raise CalibrationError(
                    f"{self.name} does not calibrate {key}, a camera of the data set. It has: "
                    f"{', '.join(self.cameras)}."
                    + (
                        f" The data set has no camera {' or '.join(strange)}: a misspelling?"
                        if strange
                        else ""
                    )
                )
            self._check_aspect(key, image_size(meta.features[key]))
        self._check_columns(meta, cameras)

    def pinholes(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> Pinholes:
        """See ``CameraSource``."""
        found = [self._pinhole(batch, key, self._camera(key)) for key in cameras]
        return Pinholes(*(torch.stack(matrices, dim=1).float() for matrices in zip(*found, strict=True)))

    def end_effector(self, batch: Mapping[str, Any]) -> Tensor:
        """See ``CameraSource``."""
        return self._position(batch).float()

    def _pinhole(self, batch: Mapping[str, Any], key: str, camera: CalibratedCamera) -> tuple[Tensor, Tensor]:
        """intrinsics_B33 in unit coordinates, and extrinsics_B34 from the base; float64."""
        (height, width), (B, device) = camera.size, _of_batch(batch)
        if isinstance(camera.intrinsics, Column):
            K_B33 = camera.intrinsics.matrices(batch, INTRINSICS)
            self._refuse(camera.intrinsics, intrinsics_fault(K_B33, height, width), key)
        else:
            K_B33 = torch.tensor(camera.intrinsics, dtype=torch.float64, device=device).expand(B, 3, 3)
        if isinstance(camera.extrinsics, Column):
            E_B34 = camera.extrinsics.matrices(batch, EXTRINSICS)
            self._refuse(camera.extrinsics, extrinsics_fault(E_B34), key)
        else:
            E_B34 = torch.tensor(camera.extrinsics, dtype=torch.float64, device=device).expand(B, 3, 4)
        if camera.on == "end_effector":
            R_B33 = E_B34[..., :3] @ self._rotation(batch, key).mT
            t_B31 = E_B34[..., 3:] - R_B33 @ self._position(batch)[..., None]
            E_B34 = torch.cat([R_B33, t_B31], dim=-1)
        return unit_intrinsics(K_B33, height, width), E_B34

    def _position(self, batch: Mapping[str, Any]) -> Tensor:
        """p_B3, float64."""
        if self.position is None:
            raise CalibrationError(
                f"{self.name} does not say where the end effector is. Add end_effector: {{position: "
                "{column: observation.state, indices: [0, 1, 2]}}, with the column of the data set."
            )
        p_B3 = self.position.numbers(batch)
        self._refuse(self.position, position_fault(p_B3))
        return p_B3

    def _rotation(self, batch: Mapping[str, Any], key: str) -> Tensor:
        """Q_B33, from the end effector's axes to the base's, float64."""
        if self.rotation is None:
            raise CalibrationError(
                f"{self.name}: camera {key} is on the end effector, whose rotation it does not say. Add "
                "rotation to end_effector."
            )
        numbers_Bn = self.rotation.column.numbers(batch)
        _, matrices, fault = ROTATIONS[self.rotation.form]
        self._refuse(self.rotation.column, fault(numbers_Bn), key)
        return matrices(numbers_Bn)

    def _refuse(self, column: Column, fault: Fault, camera: str | None = None) -> None:
        """Raises if a column's numbers cannot be what the calibration says they are; ``camera``: whose."""
        if fault is not None:
            row, words = fault
            of = "" if camera is None else f"camera {camera}: "
            raise CalibrationError(
                f"{self.name}: {of}{column.name} of frame {row} of the batch {words}. Check the column, its "
                "indices, and what it is said to be."
            )

    def _camera(self, key: str) -> CalibratedCamera:
        if key not in self.cameras:
            raise CalibrationError(f"{self.name}: {UnknownNameError('calibrated camera', key, self.cameras)}")
        return self.cameras[key]

    def _check_columns(self, meta: Any, cameras: Sequence[str]) -> None:
        turned = self.rotation is not None and any(self.cameras[key].on == "end_effector" for key in cameras)
        for key in cameras:
            for matrix, shapes, what in (
                (self.cameras[key].intrinsics, INTRINSICS, f"intrinsics of camera {key}"),
                (self.cameras[key].extrinsics, EXTRINSICS, f"extrinsics of camera {key}"),
            ):
                if isinstance(matrix, Column):
                    with self._said_of(what):
                        matrix.check_matrices(meta, shapes)
        if self.position is not None:
            with self._said_of("position of the end effector"):
                self.position.check_numbers(meta, 3)
        if self.rotation is not None and turned:
            with self._said_of("rotation of the end effector"):
                self.rotation.column.check_numbers(meta, ROTATIONS[self.rotation.form].count)

    @contextmanager
    def _said_of(self, what: str) -> Iterator[None]:
        """Context in which errors say of which file, and of what in it, they are."""
        try:
            yield
        except CalibrationError as error:
            raise CalibrationError(f"{self.name}: {what}: {error}") from error

    def _check_aspect(self, key: str, size: tuple[int, int]) -> None:
        (height, width), (H, W) = self.cameras[key].size, size
        if abs(W * height / (H * width) - 1) > SAME_ASPECT:
            raise CalibrationError(
                f"{self.name}: the calibration of camera {key} is of images of {height} x {width}, and those "
                f"of the data set are {H} x {W}: of another aspect ratio, so they are cropped or padded, and "
                "the intrinsics are not theirs. Give the size and the intrinsics of the cropped images: "
                "subtract the pixels cut off at the left from cx, and those cut off at the top from cy."
            )


def image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a camera's images, whichever order the data set's dimensions have."""
    shape, names = feature["shape"], feature.get("names") or ("height", "width", "channels")
    by_name = dict(zip(names, shape, strict=False))
    return int(by_name.get("height", shape[0])), int(by_name.get("width", shape[1]))


def _of_batch(batch: Mapping[str, Any]) -> tuple[int, torch.device]:
    """How many frames a raw batch has, and where it is."""
    some = next(value for value in batch.values() if isinstance(value, Tensor) and value.ndim)
    return len(some), some.device


def _hash(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
