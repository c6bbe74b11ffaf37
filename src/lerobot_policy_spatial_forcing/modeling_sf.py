"""The policy classes of ``sf_<type>``, built from the host records when LeRobot asks for one."""

import importlib
from functools import cache

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcedPolicy


@cache
def forced_policy_class(type_name: str) -> type:
    """The host's policy class with the alignment loss in its training loss; imports the host."""
    record = CLASSES[type_name].record  # type: ignore[attr-defined]
    plain_name = f"{record.config.removesuffix('Config')}Policy"
    plain_class = getattr(importlib.import_module(record.modeling_module), plain_name)
    body = {
        "__doc__": f"{plain_name} whose training loss has the alignment loss added.",
        "__module__": __name__,
        "config_class": CLASSES[type_name],
        "name": f"sf_{type_name}",
        "record": record,
        "plain_class": plain_class,
    }
    return type(f"Sf{plain_name}", (ForcedPolicy, plain_class), body)


NAMES = {cls.__name__.removesuffix("Config") + "Policy": name for name, cls in CLASSES.items()}


def __getattr__(name: str) -> type:
    if name in NAMES:
        return forced_policy_class(NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
