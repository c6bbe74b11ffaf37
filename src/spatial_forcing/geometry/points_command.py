"""The command ``spatial-forcing points``. Its options are in ``points_options.py``."""

from typing import Any

from spatial_forcing.cache.beside_command import write_beside
from spatial_forcing.cache.layout import POINTS
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.geometry.stored import known_share, point_source
from spatial_forcing.probe.depths import check_source


def write_points(options: Any) -> None:
    """Stores the points of a cache's tokens, or this process's share of them.

    Raises:
        CacheError: no data set was named, there are no finished features, or they are of another data set.
        ProbeError, CalibrationError: depth or cameras that there are not, or that do not fit the images.
    """
    check_source(options.depth)
    how = options.calibration, options.frame
    root = write_beside(
        POINTS,
        options,
        lambda dataset, cameras, device: point_source(options.depth, dataset, cameras, *how, device),
    )
    if root is not None:
        name = FeatureStore(root).name
        print(f"Wrote {root}: {name}; of {known_share(root):.0%} of the tokens a point is known.")
