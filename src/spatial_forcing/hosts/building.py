"""Helpers shared by the builders of several host records.

Shapes: B batch, L sequence, N visual tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError


def lora_flags(modules: str) -> str:
    """LeRobot's flags for LoRA on the modules whose names match a regular expression, for messages.

    PEFT freezes all others, those that act among them.
    """
    return (
        f"--peft.method_type=LORA --peft.target_modules='{modules}', with what acts in "
        "--peft.full_training_modules"
    )


def blocks_of_tokens(
    views: int, tokens: int, first: int = 0, step: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Selector hidden_BLD -> visual_BND of views with ``tokens`` each, ``step`` apart, from ``first`` on."""
    step = step or tokens

    def visual(hidden_BLD: Tensor) -> Tensor:
        if step == tokens:
            return hidden_BLD[:, first : first + views * tokens]
        starts = range(first, first + views * step, step)
        return torch.cat([hidden_BLD[:, start : start + tokens] for start in starts], dim=1)

    return visual


def image_size(config: Any) -> tuple[int, int]:
    """Height and width of the images of a host that does not resize them.

    Raises:
        SpatialForcingError: the cameras differ, so that one token grid cannot serve them all.
    """
    sizes = {tuple(feature.shape[-2:]) for feature in config.image_features.values()}
    if len(sizes) > 1:
        shapes = {key: tuple(feature.shape) for key, feature in config.image_features.items()}
        raise SpatialForcingError(
            f"{config.type} does not resize images, and its cameras have different sizes ({shapes}): their "
            "token grids differ, which Spatial Forcing does not support. Resize the images of the data set."
        )
    return next(iter(sizes))
