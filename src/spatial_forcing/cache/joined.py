"""How a process joins others that do the same work, as torchrun starts them: its share, and its GPU."""

import os

from spatial_forcing.cache.layout import Share
from spatial_forcing.device import checked_device
from spatial_forcing.processes import end_with_parent


def joined_share() -> Share:
    """This process's share of the work. A process that torchrun started ends with it from here on.

    Raises:
        CacheError: the environment names no share that can be.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process, and others beside it
        end_with_parent()
    return Share.from_environment()


def own_device(name: str) -> str:
    """The device of this process: of ``cuda`` the GPU that torchrun gave it, any other as it is named.

    Raises:
        DeviceError: no such device.
    """
    local = os.environ.get("LOCAL_RANK")
    device = f"cuda:{local}" if name == "cuda" and local is not None else name
    checked_device(device)
    return device
