"""The command ``spatial-forcing points``. Its options are in ``points_options.py``."""

from typing import Any

from spatial_forcing.cache.beside_command import write_beside
from spatial_forcing.cache.layout import MANIFEST, POINTS, CacheError
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.verify import broken_files
from spatial_forcing.geometry.stored import known_share, point_source
from spatial_forcing.probe.depths import check_source


def write_points(options: Any) -> None:
    """Stores the points of a cache's tokens, or this process's share of them.

    Raises:
        CacheError: no data set was named, there are no finished features, they are of another data set, or
            points that were stored before are damaged.
        ProbeError, CalibrationError: depth or cameras that there are not, or that do not fit the images.
    """
    check_source(options.depth)
    there = (options.features / POINTS / MANIFEST).is_file()
    how = options.calibration, options.frame
    root = write_beside(
        POINTS,
        options,
        lambda dataset, cameras, device: point_source(options.depth, dataset, cameras, *how, device),
    )
    if root is None:
        return
    if there and (broken := broken_files(root)):
        raise CacheError(next(iter(broken.values())))
    done = "Nothing to do, all is there in" if there else "Wrote"
    said = f"{FeatureStore(root).name}; of {known_share(root):.0%} of the tokens a point is known."
    print(f"{done} {root}: {said}")
