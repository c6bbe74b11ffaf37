"""A calibration file with a camera of numbers, one on the end effector, and one of the data set's columns."""

from copy import deepcopy
from pathlib import Path

import yaml

LEFT, WRIST, MOVING = (f"observation.images.{name}" for name in ("left", "wrist", "moving"))
TURNED = [[0.0, -1.0, 0.0, 0.02], [0.0, 0.0, -1.0, 0.31], [1.0, 0.0, 0.0, 0.94]]
RIGHT = {
    "cameras": {
        LEFT: {
            "size": [480, 640],
            "intrinsics": {"fx": 520.1, "fy": 520.3, "cx": 320.2, "cy": 240.9},
            "extrinsics": TURNED,
        },
        WRIST: {
            "size": [480, 640],
            "intrinsics": [[380.0, 0.0, 320.0], [0.0, 380.0, 240.0], [0.0, 0.0, 1.0]],
            "on": "end_effector",
            "extrinsics": [[1, 0, 0, 0], [0, 1, 0, 0.07], [0, 0, 1, 0.04]],
        },
        MOVING: {
            "size": [480, 640],
            "intrinsics": {"column": "moving.intrinsics"},
            "extrinsics": {"column": "moving.extrinsics"},
        },
    },
    "end_effector": {
        "position": {"column": "observation.state", "indices": [0, 1, 2]},
        "rotation": {"column": "observation.state", "indices": [3, 4, 5, 6], "as": "quaternion_xyzw"},
    },
}


def with_value(path: str, value: object) -> dict:
    """The right file with another value; ``path`` has / between keys, and ... removes it."""
    content = deepcopy(RIGHT)
    *parents, last = path.split("/")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


def written(folder: Path, content: object) -> Path:
    path = folder / "calibration.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path
