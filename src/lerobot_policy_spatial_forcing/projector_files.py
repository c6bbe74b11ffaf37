"""Projector files beside a checkpoint: their weights, and a description of what they were trained for.

``spatial_forcing/projector.safetensors`` holds their weights, ``forcing.json`` the options, the site, the
teacher and how many steps were made. Of a run with sharded checkpoints (``--checkpoint_format=dcp``) the
latter lies there alone: the projector is among the shards.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_policy_spatial_forcing.feature_source import DEFAULT_TEACHER
from lerobot_policy_spatial_forcing.forcing_config import AlignmentConfig, ForcingConfig, ListedAlignment
from spatial_forcing.align import STEP_KEY, SpatialForcing
from spatial_forcing.alignment import Part
from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import read_json
from spatial_forcing.inspection.projector import DESCRIPTION, WEIGHTS
from spatial_forcing.inspection.projector import FOLDER as SIDE_FOLDER
from spatial_forcing.patches.versions import whole, writes_here

# The options that decide what a projector is, reads and gives, beside its site and the teacher.
OF_THE_PROJECTOR = (
    "loss",
    "norm",
    "pca_targets",
    "position_embedding",
    "standardize",
    "published",
    "control",
    "points",
    "projector",
    "spatial_norm",
    "future",
    "shares",
    "hidden_share",
)


def save_projectors(
    forcing: SpatialForcing, config: ForcingConfig, state: dict[str, Tensor], side: Path
) -> None:
    """Saves projectors with their description. If they are sharded, all processes must call it.

    Args:
        forcing: what trains them.
        config: its options.
        state: its state dict, which may be sharded.
        side: the folder; made if missing.
    """
    gathered = whole(state)
    if writes_here():
        describe_projectors(forcing, config, side)
        save_file(gathered, side / WEIGHTS)


def describe_projectors(
    forcing: SpatialForcing, config: ForcingConfig, side: Path, *, sharded: bool = False
) -> None:
    """Writes the description of the projectors.

    Args:
        sharded: their weights are among the shards of the policy's own, and in no file beside it.
    """
    side.mkdir(parents=True, exist_ok=True)
    record = {name: value for name, value in asdict(config).items() if name not in RENAMED_FORCING}
    described = [_described(part, entry) for part, entry in zip(forcing.parts, config.entries(), strict=True)]
    record |= {"alignments": described} if config.alignments else described[0]
    record |= {"step": forcing.step, "sharded": sharded}
    (side / DESCRIPTION).write_text(json.dumps(record, indent=2) + "\n")


def side_folder_of(checkpoint: Path | str, revision: str | None) -> Path:
    """The folder with the projectors of a checkpoint, which there may not be; from the Hub if it lies there.

    Args:
        checkpoint: a local folder, or a repository of the Hub.
        revision: of the repository.
    """
    if not Path(checkpoint).exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            fetched = snapshot_download(
                str(checkpoint), revision=revision, allow_patterns=[f"{SIDE_FOLDER}/*"]
            )
            return Path(fetched) / SIDE_FOLDER
        except (OSError, ValueError, HfHubHTTPError) as error:
            logging.getLogger(__name__).warning(
                "Whether %s has a projector could not be found out (%s): a new one starts.", checkpoint, error
            )
    return Path(checkpoint) / SIDE_FOLDER


def restore_projectors(forcing: SpatialForcing, config: ForcingConfig, side: Path) -> None:
    """Restores projectors and the step count, if they were trained for the same alignments as now.

    Raises:
        SpatialForcingError: a projector was trained for something else, or is not there, and no new one is
            wanted; or one of its files is damaged.
    """
    if not side.is_dir():
        return
    saved = _description(side)
    records = saved.get("alignments") or [saved]
    there = {record.get("name"): record for record in records}
    weights = side / WEIGHTS
    if not weights.is_file() and not saved.get("sharded"):
        raise SpatialForcingError(
            f"{weights} is missing, and {DESCRIPTION} beside it describes a projector: the checkpoint was "
            f"copied in part. {_advice(side)}"
        )
    late = bool(saved.get("one_token_late")), config.one_token_late
    differing: dict[str, tuple[Any, Any]] = {}
    fitting: dict[str, str] = {}  # where the tensors of a projector are, by its name now
    for part, entry in zip(forcing.parts, config.entries(), strict=True):
        only = len(there) == len(forcing.parts) == 1
        record = next(iter(there.values())) if only else _of_name(there, part)
        prefix = "" if len(forcing.parts) == 1 else f"{part.name}: "
        if record is None:
            differing[f"{prefix}projector"] = ("none", f"one at {part.tap.site.name}")
        elif found := _differing(record, part, entry, late):
            differing |= {f"{prefix}{name}": pair for name, pair in found.items()}
        else:
            fitting[part.name] = "projector." if len(there) == 1 else f"projectors.{record['name']}."
    _check_wanted(differing, config.new_projector, weights.is_file())
    if fitting:
        tensors: dict[str, Tensor] = {}
        if weights.is_file():  # those among the shards of the policy's own are loaded with them
            tensors = _tensors(weights)
            _load(forcing, tensors, fitting, weights)
        forcing.step = saved.get("step", int(tensors.get(STEP_KEY, 0)))
        names = "" if len(forcing.parts) == 1 else f" of {', '.join(fitting)}"
        logging.getLogger(__name__).info("The projector%s continues from %s.", names, side)


def _check_wanted(differing: dict[str, tuple[Any, Any]], new_projector: bool, alone: bool) -> None:
    """Raises :class:`SpatialForcingError` if projectors of something else are there and no new ones wanted.

    Args:
        differing: by name what was there, and what is here.
        new_projector: whether new ones are wanted.
        alone: the projectors are in a file of their own.
    """
    says = "; ".join(f"{name}: {was} there, {now} here" for name, (was, now) in differing.items())
    if differing and not alone:
        raise SpatialForcingError(
            "The projector of this checkpoint was trained for something else than is asked for now "
            f"({says}), and it lies among the policy's own weights (checkpoint_format=dcp), with which it is "
            "loaded. Give what is there."
        )
    if differing and not new_projector:
        raise SpatialForcingError(
            f"The projector of this checkpoint was trained for something else than is asked for now "
            f"({says}). To continue with it, give what is there. To keep the policy and start a new "
            "projector: --policy.forcing.new_projector=true."
        )


def _load(
    forcing: SpatialForcing, tensors: dict[str, Tensor], fitting: dict[str, str], weights: Path
) -> None:
    """Loads projectors from the tensors of a file.

    Args:
        forcing: what trains them.
        tensors: of the file.
        fitting: by the name of an alignment, how the names of its projector's tensors begin there.
        weights: the file.

    Raises:
        SpatialForcingError: a tensor is missing, of another size, or one too many.
    """
    for part in forcing.parts:
        if part.name not in fitting or part.projector_name != part.name:
            continue
        key, projector = fitting[part.name], forcing.projector_of(part.name)
        state = {name.removeprefix(key): one for name, one in tensors.items() if name.startswith(key)}
        found, wanted = (
            {name: tuple(one.shape) for name, one in of.items()} for of in (state, projector.state_dict())
        )
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise SpatialForcingError(
                    f"{weights} is damaged, or of another checkpoint: expected {key}{name} of size "
                    f"{wanted.get(name, 'none')}, found {found.get(name, 'none')}. {_advice(weights.parent)}"
                )
        projector.load_state_dict(state)


def _tensors(weights: Path) -> dict[str, Tensor]:
    """The tensors of the projectors' file; raises :class:`SpatialForcingError` if it cannot be read."""
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise SpatialForcingError(f"{weights} cannot be read ({error}). {_advice(weights.parent)}") from error


def _description(side: Path) -> dict[str, Any]:
    """The description beside the projectors; raises :class:`SpatialForcingError` if it is damaged."""
    path = side / DESCRIPTION
    saved = read_json(path, _advice(side))
    records = saved.get("alignments") or [saved]
    wrong = None
    if not isinstance(saved.get("step", 0), int):
        wrong = f"step is a whole number; found {saved['step']!r}"
    elif not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        wrong = f"alignments is a list of descriptions; found {records!r}"
    elif not all(isinstance(record.get("teacher_fingerprint"), str) for record in records):
        wrong = "teacher_fingerprint says which features a projector was trained toward; found none"
    elif len(records) > 1 and not all(isinstance(record.get("name"), str) for record in records):
        wrong = "each of several alignments has a name; found one without"
    elif not all(_is_site(record.get("site")) for record in records):
        wrong = "site says host, width, and a name or depth; found something else"
    if wrong is not None:
        raise SpatialForcingError(f"{path} is damaged: {wrong}. {_advice(side)}")
    return saved


def _is_site(site: Any) -> bool:
    """Whether a description's site says all; earlier versions saved the number of a layer, or none."""
    if not isinstance(site, dict):
        return True
    return {"host", "width"} <= site.keys() and not site.keys().isdisjoint({"name", "depth"})


def _advice(side: Path) -> str:
    """What to do about damaged or missing files of the projectors."""
    return (
        "Copy the checkpoint again with all of its files; or, to keep the policy and start a new projector, "
        f"remove {side}."
    )


def name_plain_class(save_directory: Path, plain: type) -> None:
    """Writes the host's own class, which every machine has, into a saved adapter; PEFT names the other."""
    path = save_directory / "adapter_config.json"
    if not path.is_file():
        return
    adapter = json.loads(path.read_text())
    if adapter.get("auto_mapping") is not None:
        adapter["auto_mapping"] = {"base_model_class": plain.__name__, "parent_library": plain.__module__}
        path.write_text(json.dumps(adapter, indent=2, sort_keys=True))


def _described(part: Part, entry: AlignmentConfig) -> dict[str, Any]:
    """The saved description of an alignment: its options and their resolved values."""
    return asdict(entry) | {
        "name": part.name,
        "site": _site(part),
        "teacher_fingerprint": part.fingerprint,
        "teacher_licence": part.target.licence,
    }


def _site(part: Part) -> dict[str, Any]:
    """The site at which the projector's tokens are read."""
    site = part.tap.site
    return {"host": site.host, "width": site.width, "name": site.name}


def _of_name(there: dict[str | None, dict[str, Any]], part: Part) -> dict[str, Any] | None:
    """The saved record of an alignment by name; a record without a name goes by its site."""
    if part.name in there:
        return there[part.name]
    nameless = there.get(None)
    return (
        nameless if nameless and _saved_site(nameless, part)["name"].replace(".", "_") == part.name else None
    )


def _saved_site(saved: dict[str, Any], part: Part) -> dict[str, Any]:
    """The site of a saved projector. Earlier versions saved a depth, or nothing for the default."""
    here, site = _site(part), saved.get("site")
    if isinstance(site, dict):
        depth = site.get("depth")
        return {"name": f"blocks.{depth}"} | {name: site[name] for name in here if name in site}
    return here | {"name": f"blocks.{saved.get('depth') or part.recommended_layer}"}


def _differing(
    saved: dict[str, Any], part: Part, entry: AlignmentConfig, late: tuple[bool, bool]
) -> dict[str, tuple[Any, Any]]:
    """Differences between what a saved projector was trained for and what the current one will be.

    ``saved`` is the description beside it. That of an earlier version says less: an option that it does not
    know had its default. ``late``: whether tokens were read one late, and will be.
    """
    pairs: dict[str, tuple[Any, Any]] = {}
    if saved["teacher_fingerprint"] != part.fingerprint:
        pairs["features"] = (
            _features_of(saved, saved["teacher_fingerprint"]),
            _features_of(asdict(entry), part.fingerprint),
        )
    here, there = _site(part), _saved_site(saved, part)
    pairs |= {"site" if name == "name" else f"tapped {name}": (there[name], here[name]) for name in here}
    known = asdict(ListedAlignment())
    saved = {RENAMED_FORCING[name]: value for name, value in saved.items() if name in RENAMED_FORCING} | saved
    for name in OF_THE_PROJECTOR:
        pairs[name] = saved.get(name, known[name]), getattr(entry, name, known[name])
    pairs["one_token_late"] = late
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}


def _features_of(entry: dict[str, Any], fingerprint: str) -> str:
    """Human-readable name of the features that a policy is trained toward."""
    return f"{entry.get('cache') or entry.get('teacher') or DEFAULT_TEACHER} ({fingerprint})"
