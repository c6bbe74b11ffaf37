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
    from spatial_forcing.align import SpatialForcing
    from spatial_forcing.alignment import Alignment
    from spatial_forcing.check import HostReport, check_host
    from spatial_forcing.errors import SpatialForcingError
    from spatial_forcing.features import Features
    from spatial_forcing.grid import Layout, resample
    from spatial_forcing.hosts import host_of
    from spatial_forcing.losses.cosine import cosine_distance
    from spatial_forcing.on_grid import Given
    from spatial_forcing.projector import Projector
    from spatial_forcing.site import Host, Site, TapError, VisionEncoder
    from spatial_forcing.tap import Tap
    from spatial_forcing.target import Target
    from spatial_forcing.teachers import Teacher, load_teacher

_HOME = {
    "Alignment": "alignment",
    "Features": "features",
    "Given": "on_grid",
    "Host": "site",
    "HostReport": "check",
    "Layout": "grid",
    "Projector": "projector",
    "Site": "site",
    "SpatialForcing": "align",
    "SpatialForcingError": "errors",
    "Tap": "tap",
    "TapError": "site",
    "Target": "target",
    "Teacher": "teachers",
    "VisionEncoder": "site",
    "check_host": "check",
    "cosine_distance": "losses.cosine",
    "host_of": "hosts",
    "load_teacher": "teachers",
    "resample": "grid",
}

__all__ = [
    "Alignment",
    "Features",
    "Given",
    "Host",
    "HostReport",
    "Layout",
    "Projector",
    "Site",
    "SpatialForcing",
    "SpatialForcingError",
    "Tap",
    "TapError",
    "Target",
    "Teacher",
    "VisionEncoder",
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
