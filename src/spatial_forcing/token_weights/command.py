"""The command ``spatial-forcing weights``. Its options are in ``options.py``."""

from typing import Any

from rich.console import Console

from spatial_forcing.cache.beside import extract_beside, features_in
from spatial_forcing.cache.layout import MANIFEST, WEIGHTS, CacheError
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import Share, Watch, check_numbers
from spatial_forcing.console import stages
from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.files import check_folder
from spatial_forcing.token_weights.sources import check_source, weight_source


def write_weights(options: Any) -> None:
    """Stores the weights of a cache's tokens, or this process's share of them.

    Raises:
        CacheError: no data set was named, there are no finished features, or they are of another data set.
        UnknownNameError, WeightsSourceError: weights that there are not, or that are none.
    """
    if options.dataset is None:
        raise CacheError("Say of which data set the features are: --dataset <folder, or name on the Hub>.")
    check_numbers(options.batch, None)
    check_source(options.source)
    check_folder(options.features, CacheError)
    checked_device(options.device)
    dataset, share = open_dataset(options.dataset), Share.from_environment()
    cameras = features_in(options.features, dataset).source.cameras
    source = weight_source(options.source, dataset, cameras, options.least, options.device)
    with stages(Console(stderr=True)) as bars:
        bar = bars.add_task("weights of the tokens", total=None)
        watch = Watch(lambda plan: bars.update(bar, total=plan.share), lambda n: bars.advance(bar, n))
        how: dict[str, Any] = {"batch_size": options.batch, "share": share, "watch": watch}
        root = extract_beside(WEIGHTS, options.dataset, source, options.features, **how)
        bars.update(bar, total=bars.tasks[bar].completed)
    if not (root / MANIFEST).is_file():
        print(f"Share {share.rank} of {share.world} of {root} is done.")
        return
    stats = FeatureStore(root).stats
    assert stats is not None
    mean, std = (float(of[0]) for of in stats)
    print(f"Wrote {root}: weights of {source.name}, {mean:.2f} on average, deviation {std:.2f}.")
