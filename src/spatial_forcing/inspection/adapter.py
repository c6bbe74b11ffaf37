"""An adapter of PEFT (LoRA) beside a LeRobot configuration: its tensors, and the policy that it adapts."""

from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.files import read_json
from spatial_forcing.inspection.headers import facts_of, file_at, shapes_of
from spatial_forcing.inspection.record import Inspection
from spatial_forcing.openvla.base import is_released
from spatial_forcing.openvla.inspect import inspect_checkpoint
from spatial_forcing.teachers.checkpoint import WeightsError, differences

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def add_adapter(found: Inspection, policy: Any) -> None:
    """Adds what is known of an adapter to the inspection of its folder.

    Args:
        found: of the folder.
        policy: the policy that it adapts, on the meta device; it is changed. None if it could not be built.
    """
    try:
        said = read_json(found.path / CONFIG, error=WeightsError)
    except WeightsError as error:
        found.problems.append(str(error))
        return
    found.facts["adapter"] = f"{said.get('peft_type')}, rank {said.get('r')}, of {said.get('target_modules')}"
    _add_base(found, said)
    path = found.path / WEIGHTS
    if not path.is_file():
        found.problems.append(f"The adapter's weights are missing: expected {WEIGHTS}.")
        return
    weights = file_at(path)
    found.facts |= facts_of(weights)
    found.problems += weights.problems
    if weights.problems or policy is None:
        return
    try:
        expected = _expected(policy, found.path)
    except SpatialForcingError:
        raise
    except Exception as error:  # PEFT refuses targets and options in many ways
        found.problems.append(f"PEFT cannot adapt this policy with {CONFIG}: {error}")
        return
    found.differ(differences(shapes_of(weights), expected))


def _expected(policy: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an adapter of the policy; nothing is allocated."""
    try:
        from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    except ImportError as error:
        raise MissingDependencyError("peft", "policies") from error
    config = PeftConfig.from_pretrained(str(folder))
    policy.name_or_path = config.base_model_name_or_path  # else PEFT warns that it is another
    model = get_peft_model(policy, config, low_cpu_mem_usage=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _add_base(found: Inspection, said: dict[str, Any]) -> None:
    base = said.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        found.problems.append(
            f"{CONFIG} does not say which policy it adapts: LeRobot cannot load it. Write the folder of that "
            "policy there, as base_model_name_or_path."
        )
        return
    found.facts["adapts"] = base
    path = Path(base).expanduser()
    if not path.exists() and (path.is_absolute() or base.count("/") != 1):
        found.problems.append(f"The policy that it adapts is not there: no folder {base}.")
    elif not path.exists():
        found.notes.append(f"It loads with {base}, from the Hub or its cache, which was not inspected.")
    elif is_released(base):  # of OpenVLA: in shards, with an index
        record = inspect_checkpoint(path)
        found.problems += [f"The policy that it adapts: {problem}" for problem in record.problems]
        found.notes.append(f"It loads with {base}, {record.variant}: spatial-forcing inspect {base}")
    elif not (path / "model.safetensors").is_file():
        found.problems.append(f"The policy that it adapts is not whole: {base} has no model.safetensors.")
    else:
        found.notes.append(f"It loads with {base}: spatial-forcing inspect {base}")
