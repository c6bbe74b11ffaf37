"""Feature caches of several layers in one folder: ``features/layer-11/`` is the cache of layer 11.

It has the bytes that a cache of that layer alone has, and is read, verified and repaired as one.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from spatial_forcing.cache.layout import (
    COMMAND,
    MANIFEST,
    SOURCE,
    CacheError,
    read_manifest,
)
from spatial_forcing.files import read_json

LAYER = re.compile(r"layer-(0|[1-9]\d*)")


def layer_folder(root: Path, layer: int) -> Path:
    """Folder of the cache of one of several layers."""
    return root / f"layer-{layer}"


def stored_layers(root: Path) -> dict[int, Path]:
    """The folders of a cache of several layers, finished or not, by layer; none if it is of one."""
    there = {int(found[1]): path for path in root.glob("layer-*") if (found := LAYER.fullmatch(path.name))}
    return dict(sorted(there.items()))


def folder_of(root: Path, layer: int | None) -> Path:
    """The folder with the cache of a layer, which is ``root`` itself where there is only one.

    Args:
        root: a cache's folder.
        layer: counted from 0, or from the end; None means the only one.

    Raises:
        CacheError: none of the layers there is it, or there are several and none is named.
    """
    there = stored_layers(root)
    if not there:
        return root
    listed = f"{root} holds the layers {', '.join(map(str, there))} of its teacher"
    if layer is None:
        if len(there) > 1:
            raise CacheError(
                f"{listed}. Say which: --policy.forcing.layer=<number>, FeatureStore(..., layer=<number>)."
            )
        return next(iter(there.values()))
    found = there.get(layer)
    if layer < 0:
        found = next((path for number, path in there.items() if number - _layers(path) == layer), None)
    if found is None:
        raise CacheError(f"{listed}, and layer {layer} is asked for. Add it: {COMMAND} --layers {layer}.")
    return found


def _layers(folder: Path) -> int:
    """Number of layers of the teacher of a layer's cache; 0 if not recorded."""
    with suppress(CacheError):
        return claimed_of(folder).get("layers") or 0
    return 0


def claimed_of(folder: Path) -> dict[str, Any]:
    """The claim of a cache, finished or not; empty if there is none yet."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)["claimed"]
    return read_json(folder / SOURCE, error=CacheError) if (folder / SOURCE).is_file() else {}
