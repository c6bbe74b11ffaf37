"""A policy of LeRobot in a package of its own. What Spatial Forcing has to know is in ``host.py``."""

from lerobot_policy_mini.configuration_mini import MiniConfig

__all__ = ["MiniConfig"]
