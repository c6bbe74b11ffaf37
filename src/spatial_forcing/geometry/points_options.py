"""The options of ``spatial-forcing points``; ``points_command.py`` does what they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class Points:
    """Store the 3D point that each token of a feature cache shows, for targets that know where things are."""

    features: Path = Path("features")
    """Feature cache; the points go into its folder points/. An interrupted command continues."""
    dataset: str | None = None
    """Folder of the LeRobotDataset that the features are of, or its name on the Hub."""
    depth: str = "recorded"
    """Depth: recorded, or pseudo:<model> (a teacher, or a folder or Hub name of a depth-estimation model)."""
    calibration: Path | None = None
    """Calibration file of the cameras; the embedded world's own if None. Try it before:
    spatial-forcing calibration check."""
    frame: Literal["robot", "end-effector", "first-camera", "camera"] = "robot"
    """Frame of the points: the calibration's (the robot's base), the same axes from the end effector on, or a
    camera's."""
    batch: int = 32
    """Frames per batch."""
    device: str = "cpu"
    """Device a depth model runs on."""

    def run(self) -> None:
        from spatial_forcing.geometry.points_command import write_points

        write_points(self)
