"""Where the cameras of a data set are: from a calibration file, or as the embedded world recorded it.

Shapes: B batch, V views.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.geometry.pinhole import Pinholes


class CalibrationError(SpatialForcingError):
    """Cameras are not calibrated, or a calibration does not fit the data set."""


class CameraSource(Protocol):
    """Protocol of what knows where the cameras of a data set are, in one frame, the robot's.

    Attributes:
        fingerprint: changes whenever the same frames could have other cameras.
    """

    @property
    def fingerprint(self) -> str: ...

    def check(self, meta: Any, cameras: Sequence[str]) -> None:
        """Raises :class:`CalibrationError` unless it fits these cameras of a data set.

        Args:
            meta: the data set's.
            cameras: its keys.
        """
        ...

    def pinholes(self, batch: Mapping[str, Any], cameras: Sequence[str]) -> Pinholes:
        """The cameras of a batch, one a view."""
        ...

    def end_effector(self, batch: Mapping[str, Any]) -> Tensor:
        """Where the end effector is, position_B3 in metres."""
        ...


def cameras_of(calibration: Path | None, dataset: Any) -> CameraSource:
    """The cameras of a data set.

    Args:
        calibration: a file; None for data sets of the embedded world, which recorded them.
        dataset: a LeRobotDataset.

    Raises:
        CalibrationError: the file cannot be read, or there is none and nothing was recorded.
    """
    if calibration is not None:
        from spatial_forcing.geometry.calibration import Calibration

        return Calibration.read(calibration)
    from spatial_forcing.geometry.recorded import RecordedCameras, is_recorded

    root = Path(dataset.root)
    if not is_recorded(root):
        raise CalibrationError(
            f"Nothing says where the cameras of {root} are: give a calibration file (--calibration "
            "cameras.yaml; of an arm, calibration: cameras.yaml; docs/geometry.md shows one). Only data sets "
            "of spatial-forcing collect bring theirs."
        )
    return RecordedCameras(root, dataset.meta)
