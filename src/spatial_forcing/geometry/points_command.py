"""The command ``spatial-forcing points``. Its options are in ``points_options.py``."""

from typing import Any

from rich.console import Console

from spatial_forcing.cache.beside import features_in
from spatial_forcing.cache.layout import MANIFEST, CacheError
from spatial_forcing.cache.write import Share, Watch, check_numbers
from spatial_forcing.console import stages
from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.files import check_folder
from spatial_forcing.geometry.stored import extract_points, known_share, point_source
from spatial_forcing.probe.depths import check_source


def write_points(options: Any) -> None:
    """Stores the points of a cache's tokens, or this process's share of them.

    Raises:
        CacheError: no data set was named, there are no finished features, or they are of another data set.
        ProbeError, CalibrationError: depth or cameras that there are not, or that do not fit the images.
    """
    if options.dataset is None:
        raise CacheError("Say of which data set the features are: --dataset <folder, or name on the Hub>.")
    check_numbers(options.batch, None)
    check_source(options.depth)
    check_folder(options.features, CacheError)
    checked_device(options.device)
    dataset, share = open_dataset(options.dataset), Share.from_environment()
    cameras = features_in(options.features, dataset).source.cameras
    source = point_source(options.depth, dataset, cameras, options.calibration, options.frame, options.device)
    with stages(Console(stderr=True)) as bars:
        bar = bars.add_task("points of the tokens", total=None)
        watch = Watch(lambda plan: bars.update(bar, total=plan.share), lambda n: bars.advance(bar, n))
        root = extract_points(
            options.dataset, source, options.features, batch_size=options.batch, share=share, watch=watch
        )
        bars.update(bar, total=bars.tasks[bar].completed)
    if not (root / MANIFEST).is_file():
        print(f"Share {share.rank} of {share.world} of {root} is done.")
        return
    print(f"Wrote {root}: {source.name}; of {known_share(root):.0%} of the tokens a point is known.")
