"""Processors of the policy type ``mini``: LeRobot's default ones."""

from typing import Any

from lerobot.processor import make_default_pre_post_processors


def make_mini_pre_post_processors(config: Any, dataset_stats: dict | None = None) -> tuple[Any, Any]:
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
