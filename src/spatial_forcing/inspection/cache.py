"""A feature cache: what it is of, whether its files are there, and which command verifies it."""

from pathlib import Path

from spatial_forcing.cache.layers import claimed_of, stored_layers
from spatial_forcing.cache.layout import (
    COMMAND,
    MANIFEST,
    POINTS,
    SOURCE,
    WEIGHTS,
    CacheError,
    Source,
    read_manifest,
    restore,
)
from spatial_forcing.files import size_text
from spatial_forcing.inspection.headers import file_at
from spatial_forcing.inspection.record import Inspection
from spatial_forcing.openvla.layout import ADVICE


def is_cache(folder: Path) -> bool:
    """Whether a folder holds a feature cache, finished or not, of one layer or of several."""
    roots = [folder, *stored_layers(folder).values()]
    return any((root / name).is_file() for root in roots for name in (MANIFEST, SOURCE))


def inspect_cache(folder: Path) -> Inspection:
    """Describes a feature cache without reading features; checksums are not compared."""
    layers = stored_layers(folder)
    found = Inspection(folder, "feature cache", f"feature cache{' of several layers' * (len(layers) > 1)}")
    for layer, root in layers.items() or [(None, folder)]:
        try:
            _add_layer(found, root)
        except CacheError as error:
            found.facts |= _claimed(root)
            found.problems.append(str(error) if layer is None else f"Layer {layer}: {error}")
        except (KeyError, TypeError, ValueError) as error:
            found.problems.append(f"{root / MANIFEST} is damaged: its source is none ({error!r}).")
    if layers:
        found.facts["layers"] = [str(layer) for layer in layers]
    for beside in (POINTS, WEIGHTS):
        found.facts[beside] = "beside it" if (folder / beside).is_dir() else "none"
    found.notes.append(f"Checksums were not compared: {COMMAND} verify --out {folder}")
    return found


def _add_layer(found: Inspection, root: Path) -> None:
    manifest = read_manifest(root)
    source = Source.from_json(manifest["source"])
    there = [name for name in manifest["sums"] if (root / name).is_file()]
    size = sum((root / name).stat().st_size for name in there)
    broken = [f"{name} is missing." for name in manifest["sums"] if name not in there]
    broken += [problem.removesuffix(ADVICE).strip() for n in there for problem in file_at(root / n).problems]
    if broken:
        found.problems.append(f"{' '.join(broken)} {restore(root)}")
    grid = "the teacher's" if source.grid is None else f"{source.grid[0]} x {source.grid[1]}"
    codec = manifest["codec"]
    found.facts |= {
        "teacher": f"{source.teacher} (fingerprint {source.teacher_fingerprint})",
        "licence": source.teacher_licence,
        "layer": "of no choice" if source.layer is None else f"{source.layer} of {source.layers}",
        "data set": f"fingerprint {source.dataset}",
        "cameras": list(source.cameras),
        "frames": source.frames,
        "grid": grid,
        "codec": f"{codec.get('kind')}, {codec.get('components')} numbers per token",
        "size": size_text(size),
    }


def _claimed(root: Path) -> dict[str, str]:
    """What an unfinished cache is to be of."""
    try:
        said = claimed_of(root)
    except CacheError:
        return {}
    return {"teacher": str(said["teacher"])} if "teacher" in said else {}
