"""Checkpoints of small policies as LeRobot's trainer leaves them, whole and damaged."""

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_policies import small_parts, small_policy

from spatial_forcing.inspection.record import Inspection


def statistics(width: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """LeRobot's statistics of a data set with a state and an action of some numbers."""
    low = {name: torch.zeros(width) for name in ("mean", "min", "q01", "q10")}
    of_one = low | {name: torch.ones(width) for name in ("std", "max", "q90", "q99")}
    return {"observation.state": of_one, "action": of_one}


def save_processors(config: Any, folder: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    for processor in make_pre_post_processors(config, dataset_stats=statistics()):  # type: ignore[arg-type]
        processor.save_pretrained(folder)


def save_small(kind: str, parts: Path, folder: Path, **options: Any) -> Path:
    """Saves a small policy with its processors; ``options`` as of ``small_policy``."""
    policy = small_policy(kind, parts, **options)
    with small_parts(kind):
        policy.save_pretrained(folder)
        save_processors(policy.config, folder)
    return folder


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(path)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def hollow(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2) -> Path:
    """A safetensors file of any size whose tensors are a hole: it takes no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + size * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def assert_says(found: Inspection, says: str) -> None:
    """Whether the problems of an inspection match a regular expression."""
    told = "\n".join(found.problems)
    assert re.search(says, told), told
