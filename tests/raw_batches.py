"""Batches of the data set for policies with images in a prompt, and images as LeRobot's GR00T crops them."""

from typing import Any

import numpy as np
import torch
from small_policies import CAMERAS, SMALL
from torch import Tensor

GROOT_CROP = {"image_crop_size": [116, 116], "image_target_size": [128, 128]}
PLAIN = {"shortest_image_edge": None, "crop_fraction": None}
HOW = [
    {"use_albumentations": False},
    {"use_albumentations": False, "letter_box_transform": True, "shortest_image_edge": 140},
    {"use_albumentations": True, "training": True},
    {"use_albumentations": True, "training": True, "letter_box_transform": True, "crop_fraction": 0.6},
]


def raw_batch(size: int, seed: int = 0, image: tuple[int, int] = SMALL) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {key: torch.rand(size, 3, *image, generator=draw) for key in CAMERAS}
    batch["observation.state"] = torch.randn(size, 4, generator=draw)
    batch["action"] = torch.randn(size, 4, 4, generator=draw)
    return batch | {"action_is_pad": torch.zeros(size, 4, dtype=torch.bool)}


def transformed(image_3HW: Tensor, how: dict[str, Any], position: Any) -> Tensor:
    """An image of the data set as LeRobot transforms it, (3, H, W) in [0, 1]."""
    from lerobot.policies.groot import processor_groot as groot

    options = GROOT_CROP | PLAIN | how
    kept = options.pop("use_albumentations")
    options.pop("training", None)
    pixels = (image_3HW.clamp(0, 1) * 255).to(torch.uint8)
    if not kept:
        return groot._transform_n1_7_image_for_vlm_torch(pixels, **options) / 255
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    image = groot._transform_n1_7_image_for_vlm_albumentations(image, crop_position=position, **options)
    return torch.from_numpy(image).permute(2, 0, 1) / 255
