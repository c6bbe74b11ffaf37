"""The policy of ``sf_tiny``."""

from lerobot_policy_spatial_forcing.configuration_sf_tiny import SfTinyConfig
from lerobot_policy_spatial_forcing.forcing import ForcedPolicy
from spatial_forcing.hosts.tiny_policy import TinyConfig, TinyPolicy


class SfTinyPolicy(ForcedPolicy, TinyPolicy):
    """TinyPolicy whose training loss has the alignment loss added."""

    config_class = SfTinyConfig
    plain_config_class = TinyConfig
    name = "sf_tiny"
