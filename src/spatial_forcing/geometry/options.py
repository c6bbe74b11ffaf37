"""The options of ``spatial-forcing calibration check``; ``check.py`` does what they ask for."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class CalibrationCheck:
    """Check the calibration of cameras: draw the projected end effector into images, and see whether it fits.

    The exit status is 1 if a camera does not fit.
    """

    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub (owner/name)."""
    calibration: Path | None = None
    """Calibration file (YAML); None for the cameras that the embedded world recorded."""
    cameras: tuple[str, ...] = ()
    """Camera keys; all that are calibrated if empty."""
    frames: int = 12
    """Number of frames to draw, evenly spread over the data set."""
    out: Path = Path("calibration.png")
    """Image for the frames, a row per camera (PNG)."""

    def run(self) -> None:
        from rich.console import Console

        from spatial_forcing.geometry.check import check_calibration

        if not check_calibration(self, Console()):
            sys.exit(1)
