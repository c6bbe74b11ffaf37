"""What cases of the Python API call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatial_forcing.hosts.tiny import TinyVLA

TEACHER = "untrained-tiny"
Call = Callable[[Any, Path], Any]


def vla(**options: Any) -> TinyVLA:
    return TinyVLA(image_size=28, width=32, heads=2, **options)


def given(call: Callable[[], Any]) -> Call:
    return lambda bench, here: call()
