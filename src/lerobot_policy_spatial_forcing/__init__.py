"""LeRobot's door to Spatial Forcing.

LeRobot imports every installed distribution whose name begins with ``lerobot_policy_``; importing this
package registers the policy types ``tiny`` and ``sf_tiny`` and the environment type ``sf_metaworld``.
"""

from lerobot_policy_spatial_forcing.configuration_sf_tiny import SfTinyConfig
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.sim.env import SimEnvConfig

__all__ = ["SfTinyConfig", "SimEnvConfig", "TinyConfig"]
