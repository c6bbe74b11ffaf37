"""The options of the command ``probe``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What to probe, with what, and how."""

    policies: tuple[str, ...] = ()
    """Policies by name: plain=runs/a forced=runs/b base=lerobot/smolvla_base. A folder with a checkpoint, a
    run of lerobot-train, or a name on the Hub."""
    dataset: str | None = None
    """Folder of a LeRobotDataset, or its name on the Hub (owner/name)."""
    sites: tuple[str, ...] = ("all",)
    """Where tokens are read: all, or names such as blocks.12 vision.-1."""
    depth: str = "recorded"
    """recorded (geometry beside the data set, or its depth features), or pseudo:<model>: a VGGT among the
    teachers, or a folder or Hub name of a transformers depth-estimation model."""
    test_episodes: tuple[str, ...] = ("0.2",)
    """Episodes to judge on, which nothing is fitted on: a fraction such as 0.2, or their numbers."""
    heads: tuple[str, ...] = ("linear",)
    """linear (every site), dpt (the published form: at the recommended site, or at each of --sites)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the DPT head; the linear head has none."""
    max_frames: int | None = 5000
    """Most frames looked at, evenly spread over all episodes; None for all."""
    far: float = 3.0
    """Depth beyond is left out: metres, or medians of the image for pseudo depth without metres."""
    teacher: str | None = None
    """A teacher whose own features are a reference line."""
    teacher_checkpoint: Path | None = None
    """Local weights of the teacher."""
    positions: tuple[str, ...] = ()
    """Positions to read, too: hand=observation.state:0,1,2 (metres). Of `collect`'s data sets end effector,
    object and goal."""
    rename: tuple[str, ...] = ()
    """Cameras that a policy knows under other names: observation.images.front=observation.images.camera1."""
    untrained: bool = True
    """Whether the first policy with random weights is a reference line."""
    suggest_site: bool = False
    """Rank the sites of the first policy for the tap, and say how sure that is."""
    rerun: bool = False
    """Also write probe.rrd for the Rerun viewer: images, depth and points."""
    batch_size: int = 32
    """Frames at a time."""
    device: str = "cpu"
    """Where policies and teacher run."""
    out: Path | None = None
    """Folder for probe.json, pictures and probe.html; outputs/probe if None."""
