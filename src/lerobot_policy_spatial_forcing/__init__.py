"""LeRobot plug-in of Spatial Forcing: registers its policy types and its environment.

LeRobot imports every installed distribution whose name begins with ``lerobot_policy_``; importing this
package registers the policy types ``tiny``, ``openvla_oft`` and, for every host record, ``sf_<type>``
(``sf_smolvla``, ``sf_pi0``, ...) and the environment type ``sf_metaworld``, and does nothing else. What
LeRobot must do differently for a policy with forcing is switched on when one is made:
``spatial_forcing.patches``.
"""

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from spatial_forcing.hosts.tiny_policy import TinyConfig
from spatial_forcing.openvla.configuration_openvla_oft import OpenVLAOFTConfig
from spatial_forcing.openvla.processor_openvla_oft import make_openvla_oft_pre_post_processors
from spatial_forcing.sim.env import SimEnvConfig

# The processors, too: LeRobot reads a checkpoint's steps by the names under which they are registered.
__all__ = [
    "CLASSES",
    "OpenVLAOFTConfig",
    "SimEnvConfig",
    "TinyConfig",
    "make_openvla_oft_pre_post_processors",
]
