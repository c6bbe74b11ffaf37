"""The processors of ``sf_tiny`` are those of ``tiny``."""

from spatial_forcing.hosts.tiny_policy import (
    make_tiny_pre_post_processors as make_sf_tiny_pre_post_processors,
)

__all__ = ["make_sf_tiny_pre_post_processors"]
