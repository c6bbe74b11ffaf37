"""A data set whose depth is painted into its images, with the embedded world's geometry beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_dataset import CAMERAS

SIDE = 28
STATE, ACTION = 4, 4


def painted(frames: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """images_FVHW3 uint8 and depth_FVHW in metres: each 14 x 14 patch at one distance and of one
    colour, whose red tells the distance."""
    patches = 0.4 + 1.8 * torch.rand(frames, 2, 2, 2, generator=draw)
    depth = patches.repeat_interleave(14, 2).repeat_interleave(14, 3)
    rest = torch.randint(0, 255, (*patches.shape, 2), generator=draw, dtype=torch.uint8)
    rest = rest.repeat_interleave(14, 2).repeat_interleave(14, 3)
    return torch.cat([(100 * depth)[..., None].round().to(torch.uint8), rest], -1), depth


def painted_dataset(
    root: Path, *, episodes: int = 6, frames: int = 4, geometry: bool = True, seed: int = 0
) -> Path:
    """A LeRobotDataset of two cameras; its state holds the distance of the first patch as a position."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {key: dict(image) for key in CAMERAS}
    features |= {
        k: {"dtype": "float32", "shape": (n,), "names": None}
        for k, n in (("observation.state", STATE), ("action", ACTION))
    }
    dataset = LeRobotDataset.create("local/painted", fps=10, features=features, root=root, use_videos=False)
    draw = torch.Generator().manual_seed(seed)
    if geometry:
        (root / "geometry").mkdir()
        (root / "demos.json").write_text(json.dumps({"complete": True}))
    for episode in range(episodes):
        images, depth = painted(frames, draw)
        for f in range(frames):
            state = torch.stack([*depth[f, :, 0, 0], depth[f, 0, -1, -1], torch.rand((), generator=draw)])
            row = {key: images[f, v].numpy() for v, key in enumerate(CAMERAS)}
            row |= {"observation.state": state.numpy(), "action": np.zeros(ACTION, np.float32)}
            dataset.add_frame(row | {"task": "move the hand to the ball"})
        dataset.save_episode()
        if geometry:
            save_file({"depth_TVHW": depth.half()}, root / "geometry" / f"episode_{episode:06d}.safetensors")
    dataset.finalize()
    return root


def saved_tiny(folder: Path, dataset: Path, *, cameras: tuple[str, ...] = CAMERAS, seed: int = 0) -> Path:
    """A checkpoint of a small built-in policy with random weights, with its processors."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from small_policies import features_of

    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy, make_tiny_pre_post_processors

    inputs, outputs = features_of(dict.fromkeys(cameras, (SIDE, SIDE)))
    config = TinyConfig(
        image_size=SIDE,
        width=32,
        depth=3,
        input_features=inputs,
        output_features=outputs,
        device="cpu",
        push_to_hub=False,
    )
    torch.manual_seed(seed)
    policy = TinyPolicy(config)
    policy.save_pretrained(folder)
    stats = LeRobotDatasetMetadata("local/painted", root=dataset).stats
    for processor in make_tiny_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder
