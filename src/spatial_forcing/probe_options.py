"""The options of the command ``probe``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of a probe: policies, data set, sites, depth source and heads."""

    policies: tuple[str, ...] = ()
    """Policies as name=where: plain=runs/a forced=runs/b base=lerobot/smolvla_base. Where: a folder with a
    checkpoint, a run of lerobot-train, or a name on the Hub."""
    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub (owner/name)."""
    sites: tuple[str, ...] = ("all",)
    """Sites where tokens are read: all, or names such as blocks.12 vision.-1."""
    depth: str = "recorded"
    """Depth source: recorded (geometry beside the data set, or its depth features), or pseudo:<model>, a
    teacher that gives depth, or a folder or Hub name of a transformers depth-estimation model."""
    test_episodes: tuple[str, ...] = ("0.2",)
    """Test episodes, which no head is fitted on: a fraction such as 0.2, or their numbers."""
    heads: tuple[str, ...] = ("linear",)
    """Probe heads: linear (every site), dpt (the published form: at the recommended site, or at each of
    --sites)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the DPT head; the linear head has none."""
    max_frames: int | None = 5000
    """Maximum number of frames, evenly spread over all episodes; None for all."""
    far: float = 3.0
    """Maximum depth, beyond which it is left out: in metres, or in medians of the image for pseudo depth
    without metres."""
    teacher: str | None = None
    """Teacher whose own features are a reference line."""
    teacher_checkpoint: Path | None = None
    """Local weights of the teacher."""
    positions: tuple[str, ...] = ()
    """Positions to read as well: hand=observation.state:0,1,2 (metres). By default, for data sets of
    `collect`, end effector, object and goal."""
    rename: tuple[str, ...] = ()
    """Cameras to rename for the policies, data set's name=policy's name:
    observation.images.front=observation.images.camera1."""
    untrained: bool = True
    """Add the first policy with random weights as a reference line."""
    suggest_site: bool = False
    """Rank the sites of the first policy as places for the tap, with their uncertainty."""
    rerun: bool = False
    """Also write probe.rrd for the Rerun viewer: images, depth and points."""
    batch_size: int = 32
    """Frames per batch."""
    device: str = "cpu"
    """Device that policies and teacher run on."""
    out: Path | None = None
    """Folder for probe.json, figures and probe.html; outputs/probe if None."""
