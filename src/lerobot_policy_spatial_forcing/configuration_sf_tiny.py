"""``--policy.type=sf_tiny``: the built-in VLA with Spatial Forcing."""

from dataclasses import dataclass, field

from lerobot.configs import PreTrainedConfig

from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from spatial_forcing.hosts.tiny_policy import TinyConfig


@PreTrainedConfig.register_subclass("sf_tiny")
@dataclass
class SfTinyConfig(TinyConfig):
    """TinyConfig and one more field, ``forcing``."""

    forcing: ForcingConfig = field(default_factory=ForcingConfig)
