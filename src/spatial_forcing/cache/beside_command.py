"""What the commands that store something beside a cache have in common: ``points`` and ``weights``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from spatial_forcing.cache.beside import Beside, extract_beside, features_in
from spatial_forcing.cache.joined import joined_share, own_device
from spatial_forcing.cache.layout import MANIFEST, CacheError
from spatial_forcing.cache.write import Watch, check_numbers
from spatial_forcing.console import stages
from spatial_forcing.datasets import open_dataset
from spatial_forcing.files import check_folder


def write_beside(
    what: str, options: Any, source_of: Callable[[Any, tuple[str, ...], str], Beside]
) -> Path | None:
    """Stores numbers of a cache's tokens beside it, or this process's share of them, with a bar.

    Args:
        what: the name of their folder.
        options: features, dataset, batch, device, as of the command.
        source_of: (data set, cameras, device) -> the source of the numbers.

    Returns:
        The folder; None where other processes have shares that are not done.

    Raises:
        CacheError: no data set was named, there are no finished features, or they are of another data set.
        DeviceError: no such device.
        SpatialForcingError: the source does not fit the data set.
    """
    if options.dataset is None:
        raise CacheError("Say of which data set the features are: --dataset <folder, or name on the Hub>.")
    check_numbers(options.batch, None)
    check_folder(options.features, CacheError)
    device, share = own_device(options.device), joined_share()
    dataset = open_dataset(options.dataset)
    source = source_of(dataset, features_in(options.features, dataset).source.cameras, device)
    with stages(Console(stderr=True)) as bars:
        bar = bars.add_task(f"{what} of the tokens", total=None)
        watch = Watch(lambda plan: bars.update(bar, total=plan.share), lambda n: bars.advance(bar, n))
        how: dict[str, Any] = {"batch_size": options.batch, "share": share, "watch": watch}
        root = extract_beside(what, options.dataset, source, options.features, **how)
        bars.update(bar, total=bars.tasks[bar].completed)
    if not (root / MANIFEST).is_file():
        print(f"Share {share.rank} of {share.world} of {root} is done.")
        return None
    return root
