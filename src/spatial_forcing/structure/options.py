"""The options of ``spatial-forcing teachers``; ``command.py`` does what they ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class Teachers:
    """List the teachers; with --dataset, score the spatial structure of their features on it."""

    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub (owner/name)."""
    teachers: tuple[str, ...] = ()
    """Registered teachers, or local files or folders; if empty, all whose weights are on this machine."""
    frames: int = 64
    """Number of frames, evenly spread over the episodes."""
    layers: tuple[int, ...] = ()
    """Layers of each teacher that has a choice, negative from the end; the last if empty."""
    grid: tuple[int, int] = (8, 8)
    """Rows and columns of tokens that all features are pooled to before they are compared."""
    cameras: tuple[str, ...] = ()
    """Camera keys; all of the data set if empty."""
    depth: str | None = None
    """Depth to read from the features: recorded, or pseudo:<model> (see `probe`); if None, recorded depth
    where the data set has it."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the teachers' matrix products, bfloat16 on GPUs; float32 if None."""
    device: str = "cpu"
    """Device the teachers run on."""
    commercial: bool = False
    """Leave out teachers whose licence forbids commercial use."""
    out: Path | None = None
    """JSON file for the scores; none is written if None."""

    def run(self) -> None:
        from spatial_forcing.structure.command import list_or_score

        list_or_score(self)
