"""Small demonstrations with recorded depth and cameras."""

from pathlib import Path

from spatial_forcing.sim.collect import DemoSpec, collect

VIEWS = ["observation.images.left", "observation.images.right"]
SPEC = DemoSpec(episodes=4, frames=3, size=56)


def collected(folder: Path) -> Path:
    """Records the demonstrations into a folder."""
    return collect(SPEC, folder / "demos", workers=1)
