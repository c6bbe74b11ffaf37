"""A small policy with random weights that sees what LIBERO shows, as a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def save_libero_policy(folder: Path, size: int, cameras: Sequence[str], stats: Any = None) -> Path:
    """Saves the built-in policy with eight states and seven actions; ``stats`` of a data set, if given."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature

    from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy, make_tiny_pre_post_processors

    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for key in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    torch.manual_seed(0)
    config = TinyConfig(
        image_size=size, width=32, depth=2, input_features=inputs, output_features=outputs, device="cpu"
    )
    TinyPolicy(config).save_pretrained(folder)
    numbers = {
        key: {"mean": torch.zeros(n), "std": torch.ones(n)}
        for key, n in (("observation.state", 8), ("action", 7))
    }
    for processor in make_tiny_pre_post_processors(config, numbers if stats is None else stats):
        processor.save_pretrained(folder)
    return folder
