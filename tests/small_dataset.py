"""LeRobotDatasets of a few small random frames, made with LeRobot's own writer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("observation.images.left", "observation.images.right")


def make_dataset(
    root: Path,
    *,
    episodes: int = 3,
    frames: int = 5,
    size: int | tuple[int, int] | Mapping[str, tuple[int, int]] = 28,
    seed: int = 0,
    videos: bool = False,
    cameras: Sequence[str] = CAMERAS,
) -> Path:
    """Writes ``episodes`` x ``frames`` frames of some cameras, 4 states and 4 actions to ``root``.

    Images are ``size`` squares, or of ``size`` = (height, width), which may be given by camera; stored as
    they are, or as videos.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    one = (size, size) if isinstance(size, int) else size
    shapes = {key: (*(one[key] if isinstance(one, Mapping) else one), 3) for key in cameras}
    image = {"dtype": "video" if videos else "image", "names": ["height", "width", "channels"]}
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    features = {key: image | {"shape": shapes[key]} for key in cameras}
    features |= {"observation.state": vector, "action": dict(vector)}
    dataset = LeRobotDataset.create("local/small", fps=10, features=features, root=root, use_videos=videos)
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        for _ in range(frames):
            frame = {key: rng.integers(0, 255, shapes[key], dtype=np.uint8) for key in cameras}
            frame["observation.state"] = rng.normal(size=4).astype(np.float32)
            frame["action"] = rng.uniform(-1, 1, 4).astype(np.float32)
            dataset.add_frame(frame | {"task": "move the hand to the ball"})
        dataset.save_episode()
    dataset.finalize()
    return root


def datasets_of_size(root: Path) -> Callable[[Any], Path]:
    """size of the images -> folder of a data set, written when first asked for."""
    made = {}

    def data_of(size: Any) -> Path:
        key = str(size)
        if key not in made:
            made[key] = make_dataset(root / str(len(made)), episodes=2, frames=4, size=size)
        return made[key]

    return data_of
