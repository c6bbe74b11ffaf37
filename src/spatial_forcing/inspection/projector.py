"""The projector of Spatial Forcing beside a policy's checkpoint: what it was trained toward, and where."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from spatial_forcing.cache.layers import stored_layers
from spatial_forcing.cache.layout import read_manifest
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import read_json
from spatial_forcing.inspection.headers import file_at
from spatial_forcing.inspection.record import Inspection

# What the plug-in for LeRobot writes beside a policy's files.
FOLDER, DESCRIPTION, WEIGHTS = "spatial_forcing", "forcing.json", "projector.safetensors"
ADVICE = "To train on without it, remove that folder."


def add_projector(found: Inspection) -> None:
    """Adds what is known of the projectors in a policy's folder to its inspection."""
    folder = found.path / FOLDER
    if not folder.is_dir():
        found.facts["projector"] = "none"
        return
    try:
        said = read_json(folder / DESCRIPTION, ADVICE)
    except SpatialForcingError as error:
        found.facts["projector"] = "damaged"
        found.problems.append(str(error))
        return
    listed = said.get("alignments") or [said]
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        found.problems.append(f"{FOLDER}/{DESCRIPTION} lists no alignments. {ADVICE}")
        listed = []
    found.facts["projector"] = [_described(one) for one in listed]
    found.facts["forced steps"] = said.get("step", 0)
    if (folder / WEIGHTS).is_file():
        weights = file_at(folder / WEIGHTS)
        found.problems += [f"{FOLDER}/{problem} {ADVICE}" for problem in weights.problems]
    elif said.get("sharded"):
        found.notes.append("The projector's weights are among the shards of the policy's.")
    else:
        found.problems.append(
            f"{FOLDER}/{WEIGHTS} is missing, and {DESCRIPTION} beside it describes a projector: copy the "
            f"checkpoint again with all of its files. {ADVICE}"
        )


def _teacher_of_cache(cache: Path, fingerprint: Any) -> str | None:
    """The name of a cache's teacher, while the cache is there and of that fingerprint."""
    for root in (cache, *stored_layers(cache).values()):
        with suppress(SpatialForcingError, KeyError, TypeError):
            source = read_manifest(root)["source"]
            if source["teacher_fingerprint"] == fingerprint:
                return str(source["teacher"])
    return None


def _described(one: Mapping[str, Any]) -> str:
    """An alignment in words: its site, its teacher."""
    site = one.get("site")
    at = site.get("name") if isinstance(site, dict) else f"block {one.get('depth') or 'unknown'}"
    teacher, cache = one.get("teacher"), one.get("cache")
    if cache:
        name = _teacher_of_cache(Path(str(cache)), one.get("teacher_fingerprint"))
        source = f"the features{f' of {name}' if name else ''} in {cache}"
    else:
        source = teacher or "the default teacher"
    fingerprint, licence = one.get("teacher_fingerprint"), one.get("teacher_licence")
    return f"at {at} toward {source} (fingerprint {fingerprint}, licence {licence})"
