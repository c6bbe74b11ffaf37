"""The options of ``spatial-forcing weights``; ``command.py`` does what they ask for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Weights:
    """Store a weight of each token of a feature cache: a teacher's confidence, or a mask of what matters."""

    source: str
    """confidence:<teacher>, how sure it is of its depth; or mask:<column>: a column of the data set for the
    only camera, or how those of all cameras begin (mask:observation.masks for observation.masks.top)."""
    features: Path = Path("features")
    """Feature cache; the weights go into its folder weights/. An interrupted command continues."""
    dataset: str | None = None
    """Folder of the LeRobotDataset that the features are of, or its name on the Hub."""
    least: float = 0.0
    """Weight of a token that the source gives none, 0 to 1."""
    batch: int = 32
    """Frames per batch."""
    device: str = "cpu"
    """Device a teacher runs on."""

    def run(self) -> None:
        from spatial_forcing.token_weights.command import write_weights

        write_weights(self)
