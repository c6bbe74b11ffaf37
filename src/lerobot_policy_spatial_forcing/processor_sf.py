"""The processors of ``sf_<type>`` are those of ``<type>``."""

import importlib
from collections.abc import Callable

from spatial_forcing.hosts.lerobot import RECORDS


def __getattr__(name: str) -> Callable:
    for record in RECORDS.values():
        if name == f"make_sf_{record.type}_pre_post_processors":
            plain = importlib.import_module(record.processor_module)
            return getattr(plain, f"make_{record.type}_pre_post_processors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
