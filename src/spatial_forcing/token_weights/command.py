"""The command ``spatial-forcing weights``. Its options are in ``options.py``."""

from typing import Any

from spatial_forcing.cache.beside_command import write_beside
from spatial_forcing.cache.layout import WEIGHTS
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.token_weights.sources import check_least, check_source, weight_source


def write_weights(options: Any) -> None:
    """Stores the weights of a cache's tokens, or this process's share of them.

    Raises:
        CacheError: no data set was named, there are no finished features, or they are of another data set.
        UnknownNameError, WeightsSourceError: weights that there are not, or that are none.
    """
    check_source(options.source)
    check_least(options.least)
    root = write_beside(
        WEIGHTS,
        options,
        lambda dataset, cameras, device: weight_source(
            options.source, dataset, cameras, options.least, device
        ),
    )
    if root is None:
        return
    store = FeatureStore(root)
    assert store.stats is not None
    mean, std = (float(of[0]) for of in store.stats)
    print(f"Wrote {root}: weights of {store.name}, {mean:.2f} on average, deviation {std:.2f}.")
