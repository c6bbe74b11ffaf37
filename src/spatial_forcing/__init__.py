"""Spatial Forcing: give a vision-language-action policy a sense of 3D space while it trains.

    from spatial_forcing import SpatialForcing, host_of, load_teacher

    sf = SpatialForcing(host_of(vla), teacher=load_teacher("vggt-1b"), weight=0.5)  # tapped at 3/4 depth
    optimizer.add_param_group({"params": sf.parameters()})  # the projector; the teacher is frozen
    with sf.watch():
        loss = action_loss(vla, batch)  # any forward of the host
    loss = loss + sf(images)  # images_BV3HW in [0, 1], or Features from a cache

The idea is in ``align.py`` (the loss), ``tap.py`` (reading a running model) and ``grid.py`` (token geometry).
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spatial_forcing.align import Projector, SpatialForcing, cosine_distance
    from spatial_forcing.check import HostReport, check_host
    from spatial_forcing.errors import SpatialForcingError
    from spatial_forcing.grid import Features, Layout, resample
    from spatial_forcing.hosts import host_of
    from spatial_forcing.tap import Host, Tap, TapError
    from spatial_forcing.teachers import Teacher, load_teacher

_HOME = {
    "Features": "grid",
    "Host": "tap",
    "HostReport": "check",
    "Layout": "grid",
    "Projector": "align",
    "SpatialForcing": "align",
    "SpatialForcingError": "errors",
    "Tap": "tap",
    "TapError": "tap",
    "Teacher": "teachers",
    "check_host": "check",
    "cosine_distance": "align",
    "host_of": "hosts",
    "load_teacher": "teachers",
    "resample": "grid",
}

__all__ = [
    "Features",
    "Host",
    "HostReport",
    "Layout",
    "Projector",
    "SpatialForcing",
    "SpatialForcingError",
    "Tap",
    "TapError",
    "Teacher",
    "__version__",
    "check_host",
    "cosine_distance",
    "host_of",
    "load_teacher",
    "resample",
]


def __getattr__(name: str) -> object:
    # Names are looked up when used, so that `import spatial_forcing` does not wait for torch.
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
