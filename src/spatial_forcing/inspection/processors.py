"""The processors saved beside a LeRobot policy: their files, their steps, their normalisation statistics."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.files import read_json
from spatial_forcing.hosts.lerobot import UNDO
from spatial_forcing.inspection.headers import file_at, shapes_of
from spatial_forcing.inspection.record import Inspection
from spatial_forcing.teachers.checkpoint import WeightsError

FILES = {"preprocessor": "policy_preprocessor.json", "postprocessor": "policy_postprocessor.json"}
STATISTICS = {"normalizer_processor": "normalised", "unnormalizer_processor": "un-normalised"}
ADVICE = "Train with lerobot-train or spatial-forcing train, which save both, or copy them from there."


def add_processors(found: Inspection, module: str) -> None:
    """Adds what is known of a policy's processors to its inspection.

    Args:
        found: of the policy's folder.
        module: where the policy's own steps are.
    """
    try:
        importlib.import_module(module)  # registers them
    except ImportError as error:
        found.problems.append(f"The policy's processors cannot be imported: {error}")
        return
    for what, name in FILES.items():
        path = found.path / name
        if not path.is_file():
            found.problems.append(f"The {what} is missing: expected {name}. {ADVICE}")
            continue
        try:
            steps = _steps(path)
        except WeightsError as error:
            found.problems.append(str(error))
            continue
        found.facts[what] = [_name(step) for step in steps]
        found.problems += _unknown_steps(steps, name)
        for step in steps:
            try:
                _add_state(found, step, name)
            except (AttributeError, KeyError, TypeError) as error:
                found.problems.append(f"{name} is damaged: {_name(step)} is no step's record ({error!r}).")


def _steps(path: Path) -> list[dict[str, Any]]:
    advice = "Take the file from where the policy was trained again."
    steps = read_json(path, advice, WeightsError).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise WeightsError(f"{path.name} has no list of steps. {advice}")
    return steps


def _name(step: Mapping[str, Any]) -> str:
    """Registered name of a step, or that of its class, as LeRobot's overrides go by."""
    return str(step.get("registry_name") or step.get("class")).rpartition(".")[2]


def _unknown_steps(steps: list[dict[str, Any]], file: str) -> Iterator[str]:
    from lerobot.processor import ProcessorStepRegistry

    known = ProcessorStepRegistry.list()
    for step in steps:
        if (name := step.get("registry_name")) is not None and name not in known:
            error = UnknownNameError("step", name, known)
            yield f"{file} has a step that this LeRobot does not know; it may be of a newer one. {error}"


def _add_state(found: Inspection, step: Mapping[str, Any], file: str) -> None:
    """Checks the file of a step's tensors, and the statistics in it where it normalises."""
    config, shapes = step.get("config") or {}, {}
    if "tokenizer_name" in config:
        _add_tokenizer(found, str(config["tokenizer_name"]), carried="state_file" in step)
    if (name := step.get("state_file")) is not None:
        path = found.path / str(name)
        if not path.is_file():
            found.problems.append(f"{path.name} is missing, which {file} names. {ADVICE}")
            return
        state = file_at(path)
        found.problems += state.problems
        if state.problems:
            return
        shapes = shapes_of(state)
    if _name(step) in STATISTICS:
        _add_statistics(found, config, shapes, STATISTICS[_name(step)])


def _add_tokenizer(found: Inspection, name: str, carried: bool) -> None:
    """Says where the tokenizer is: in the checkpoint, in a folder here, or on the Hub."""
    path = Path(name).expanduser()
    if carried:
        found.facts["tokenizer"] = f"in the checkpoint, of {name}"
    elif path.is_dir():
        found.facts["tokenizer"] = name
    elif path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        found.facts["tokenizer"] = f"{name}, which is not here"
        found.problems.append(
            f"The tokenizer is not there: no folder {name}. Put it there again, or write in "
            f"{FILES['preprocessor']} where it is, as tokenizer_name."
        )
    else:
        found.facts["tokenizer"] = f"{name}, no folder here: from the Hub or its cache"


def _add_statistics(
    found: Inspection, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    modes = config.get("norm_map") or {}
    there, absent = [], []
    for key, feature in (config.get("features") or {}).items():
        mode = str(modes.get(feature["type"], "IDENTITY"))
        if mode not in UNDO:
            continue
        names = [f"{key}.{name}" for name in UNDO[mode][0]]
        lacking = [name for name in names if name not in shapes]
        if len(lacking) == len(names):
            absent.append(key)
            continue
        there.append(f"{key} ({mode})")
        if lacking:
            found.problems.append(f"{mode} of {key} needs the statistics {', '.join(lacking)}: missing.")
        width = shapes.get(names[0], ())[-1:]
        if feature["type"] != "VISUAL" and width and list(width) != list(feature["shape"])[-1:]:
            found.problems.append(
                f"The statistics of {key} are of {width[0]} numbers, it has {feature['shape'][-1]}."
            )
    found.facts[what] = there
    if absent:
        found.notes.append(
            f"No statistics of {', '.join(absent)}, which would not be {what}: enough to train on from (a "
            "training takes those of its data set), not to roll out."
        )
