"""Devices by name, checked before anything is loaded on them."""

import torch

from spatial_forcing.errors import SpatialForcingError


class DeviceError(SpatialForcingError, ValueError):
    """A device does not exist, or not on this machine."""


def checked_device(name: torch.device | str) -> torch.device:
    """The torch device of this name, checked to exist.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ... or a torch.device.

    Raises:
        DeviceError: torch knows no such device, or this machine has none; says which it has.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"{name!r} is not a device. {_available()}") from error
    if device.type == "cpu":
        return device
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device.type:
        raise DeviceError(f"This machine has no device {str(name)!r} that torch can use. {_available()}")
    if (device.index or 0) >= torch.accelerator.device_count():
        raise DeviceError(f"This machine has no device number {device.index}. {_available()}")
    return device


def _available() -> str:
    names = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        names += [kind.type] + [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]
    return f"Available: {', '.join(names)}."
