"""A checkpoint of a LeRobot policy: configuration, tensors, processors, projector, and what forcing can do.

Its tensors are compared with those of LeRobot's own class, built on the meta device.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError, UnknownNameError
from spatial_forcing.hosts.lerobot import policy_host
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.inspection.adapter import add_adapter, is_adapter
from spatial_forcing.inspection.blank import blank_policy, policy_differences
from spatial_forcing.inspection.headers import facts_of, headers_at, shapes_of
from spatial_forcing.inspection.processors import add_processors
from spatial_forcing.inspection.projector import add_projector
from spatial_forcing.inspection.record import Inspection
from spatial_forcing.openvla.layout import SINGLE, some


def inspect_policy(folder: Path, said: dict[str, Any]) -> Inspection:
    """Describes a checkpoint of a LeRobot policy without loading it.

    Args:
        folder: with the checkpoint.
        said: content of its config.json.

    Raises:
        MissingDependencyError: LeRobot is not installed.
    """
    kind = said["type"]
    found = Inspection(folder, "policy", f"LeRobot policy {kind}{', an adapter' * is_adapter(folder)}")
    config = _config(said, found)
    policy = None if config is None else _policy(config, folder, found)
    if is_adapter(folder):
        _add_forcing(found, kind, policy)
        add_adapter(found, policy)
    else:
        _add_weights(found, policy)
        _add_forcing(found, kind, policy)
    if config is not None:
        add_processors(found, type(config).__module__.replace("configuration_", "processor_"))
    add_projector(found)
    return found


def _config(said: dict[str, Any], found: Inspection) -> Any:
    """LeRobot's configuration; None, with a problem, if it reads none."""
    try:
        import draccus
        from lerobot import __version__ as version
        from lerobot.configs import PreTrainedConfig
        from lerobot.utils.import_utils import register_third_party_plugins
    except ImportError as error:
        raise MissingDependencyError("LeRobot", "lerobot") from error
    from spatial_forcing.flags import flag_error

    register_third_party_plugins()
    kind, rest = said["type"], {name: value for name, value in said.items() if name != "type"}
    known = PreTrainedConfig.get_known_choices()
    if kind not in known:
        plain = {name for name in known if not name.startswith("sf_")}
        found.problems.append(str(UnknownNameError(f"type of policy in LeRobot {version}", kind, plain)))
        return None
    config_class: Any = PreTrainedConfig.get_choice_class(kind)
    if unknown := sorted(rest.keys() - {field.name for field in fields(config_class)}):
        found.problems.append(
            f"config.json has {some(unknown)}, which {config_class.__name__} of LeRobot {version} does not "
            "know: it may be of a newer LeRobot. Upgrade LeRobot, or remove them if they have their defaults."
        )
        rest = {name: value for name, value in rest.items() if name not in unknown}
    try:
        with draccus.config_type("json"):
            config = draccus.decode(config_class, rest)
    except Exception as error:  # of draccus, and of the configurations themselves
        found.problems.append(f"LeRobot {version} cannot read config.json: {flag_error(error)}")
        return None
    _add_features(found, config)
    return config


def _add_features(found: Inspection, config: Any) -> None:
    found.facts["cameras"] = [
        f"{key.removeprefix('observation.images.')} ({'x'.join(map(str, feature.shape[-2:]))})"
        for key, feature in config.image_features.items()
    ]
    state, action = config.robot_state_feature, config.action_feature
    found.facts["state"] = "none" if state is None else f"{state.shape[0]} numbers"
    chunk = getattr(config, "chunk_size", 1)
    found.facts["actions"] = "none" if action is None else f"{chunk} at once, of {action.shape[0]} numbers"
    if action is None:
        found.problems.append("config.json names no action (output_features): no policy can be built.")


def _policy(config: Any, folder: Path, found: Inspection) -> Any:
    """The policy on the meta device; None, with a problem, if LeRobot cannot build it here."""
    try:
        return blank_policy(config, folder)
    except Exception as error:  # packages, configurations on the Hub, sizes: of many kinds
        found.problems.append(
            f"LeRobot cannot build the policy of config.json here: {type(error).__name__}: "
            f"{_first_line(error)}"
        )
        return None


def _add_weights(found: Inspection, policy: Any) -> None:
    weights = headers_at(found.path)
    found.facts |= facts_of(weights)
    found.problems += weights.problems
    found.notes += weights.notes
    if weights.files and not (found.path / SINGLE).is_file():
        files = some([file.name for file in weights.files])
        found.problems.append(f"LeRobot reads {SINGLE} alone; the weights are in {files}. Write them as one.")
    if weights.entries and not weights.problems and policy is not None:
        found.differ(policy_differences(policy, shapes_of(weights)))


def _add_forcing(found: Inspection, kind: str, policy: Any) -> None:
    """Whether the policy can be trained with Spatial Forcing, and which site is recommended."""
    if kind not in RECORDS:
        found.facts["Spatial Forcing"] = f"no: no record of {kind}; of {', '.join(sorted(RECORDS))}"
    elif policy is not None:
        try:
            host = policy_host(policy)
        except SpatialForcingError as error:
            found.facts["Spatial Forcing"] = f"no: {error}"
            return
        grid = f"{host.layout.views} views of {host.layout.rows} x {host.layout.cols} tokens"
        found.facts["Spatial Forcing"] = f"can be forced as sf_{kind}, {grid}"
        found.facts["recommended site"] = f"{host.site_at().name} of {len(host.blocks)} blocks"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
