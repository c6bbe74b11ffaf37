"""LeRobot's door to Spatial Forcing.

LeRobot imports every installed distribution whose name begins with ``lerobot_policy_``; importing this
package registers the policy types ``tiny`` and ``sf_<type>`` for every host record (``sf_smolvla``,
``sf_pi0``, ...) and the environment type ``sf_metaworld``, makes forcing flags known beside
``--policy.path``, and lets our errors end LeRobot's commands with their message instead of a traceback.
"""

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.from_path import follow_forcing_flags
from spatial_forcing.guard import say_last
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.sim.env import SimEnvConfig

__all__ = ["CLASSES", "SimEnvConfig", "TinyConfig"]

follow_forcing_flags()
say_last()
