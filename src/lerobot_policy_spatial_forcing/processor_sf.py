"""Pre- and post-processors of ``sf_<type>``: those of ``<type>``."""

import importlib
from collections.abc import Callable

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES


def __getattr__(name: str) -> Callable:
    for kind, cls in CLASSES.items():
        if name == f"make_sf_{kind}_pre_post_processors":
            plain = importlib.import_module(cls.record.processor_module)  # type: ignore[attr-defined]
            return getattr(plain, f"make_{kind}_pre_post_processors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
