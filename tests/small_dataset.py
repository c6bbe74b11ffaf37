"""A LeRobotDataset of a few small random frames, made with LeRobot's own writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CAMERAS = ("observation.images.left", "observation.images.right")


def make_dataset(
    root: Path,
    *,
    episodes: int = 3,
    frames: int = 5,
    size: int | tuple[int, int] = 28,
    seed: int = 0,
    videos: bool = False,
    cameras: Sequence[str] = CAMERAS,
) -> Path:
    """Writes ``episodes`` x ``frames`` frames of some cameras, 4 states and 4 actions to ``root``.

    Pictures are ``size`` squares, or of ``size`` = (height, width); stored as they are, or as videos.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    shape = (*((size, size) if isinstance(size, int) else size), 3)
    image = {
        "dtype": "video" if videos else "image",
        "shape": shape,
        "names": ["height", "width", "channels"],
    }
    vector = {"dtype": "float32", "shape": (4,), "names": None}
    features = {key: dict(image) for key in cameras}
    features |= {"observation.state": vector, "action": dict(vector)}
    dataset = LeRobotDataset.create("local/small", fps=10, features=features, root=root, use_videos=videos)
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        for _ in range(frames):
            frame = {key: rng.integers(0, 255, shape, dtype=np.uint8) for key in cameras}
            frame["observation.state"] = rng.normal(size=4).astype(np.float32)
            frame["action"] = rng.uniform(-1, 1, 4).astype(np.float32)
            dataset.add_frame(frame | {"task": "move the hand to the ball"})
        dataset.save_episode()
    dataset.finalize()
    return root
