"""``forcing.cameras``: which of a policy's cameras are aligned, in which order, and their names in the data.

A list names cameras as the policy does. A mapping is what ``--rename_map`` takes, for the cameras to align:
the data set's name of a camera for the policy's. Either way the teacher sees these cameras and no others, in
this order: what a teacher that attends across views says of one depends on the others.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from lerobot.configs import parser

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

Cameras = list[str] | dict[str, str]


def check_cameras(cameras: Cameras | None) -> None:
    """Validates ``forcing.cameras`` before the policy exists.

    Raises:
        SpatialForcingError: no camera is named, or one twice.
    """
    if cameras is None:
        return
    names = list(cameras.values()) if isinstance(cameras, dict) else list(cameras)
    if not names:
        raise SpatialForcingError(
            "forcing.cameras names no camera. Leave it out to align all of the policy's, or train without "
            "forcing (--policy.forcing.loss_weight=0)."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpatialForcingError(f"forcing.cameras names {', '.join(twice)} more than once.")


def chosen_cameras(
    cameras: Cameras, policy: Sequence[str], dataset: Collection[str] | None
) -> dict[str, str]:
    """Maps the policy's camera names to the data set's, for the cameras to align, in the teacher's order.

    Args:
        cameras: ``forcing.cameras``.
        policy: the policy's cameras.
        dataset: the data set's; None if there is none.

    Raises:
        UnknownNameError: the policy, or the data set, has no such camera.
        SpatialForcingError: a list uses the data set's camera names.
    """
    check_cameras(cameras)
    mapped = isinstance(cameras, dict)
    chosen = (
        {ours: theirs for theirs, ours in cameras.items()} if mapped else {name: name for name in cameras}
    )
    unknown = [name for name in chosen if name not in policy]
    if unknown and not mapped and dataset is not None and unknown[0] in dataset:
        raise SpatialForcingError(
            f"forcing.cameras names {unknown[0]}, which is a camera of the data set; the policy's are: "
            f"{', '.join(policy)}. Where --rename_map renames cameras, give its entries for those to align: "
            f"""--policy.forcing.cameras='{{"{unknown[0]}": "<the policy's name>"}}'."""
        )
    if unknown:
        raise UnknownNameError("camera of the policy in forcing.cameras", unknown[0], policy)
    if mapped and dataset is not None:
        for theirs in chosen.values():
            if theirs not in dataset:
                raise UnknownNameError("camera of the data set in forcing.cameras", theirs, dataset)
    return chosen


def check_renamed(
    chosen: Mapping[str, str], dataset: Collection[str], rename_map: Mapping[str, str], wanted: Iterable[str]
) -> None:
    """Checks that each camera to align is the data set's camera that ``--rename_map`` calls so.

    A camera that is renamed to the name of another one of the data set would be taken for that one, and
    aligned to its stored features.

    Args:
        chosen: the policy's names of the cameras to align, and for each the data set's.
        dataset: the data set's cameras.
        rename_map: the data set's names -> the policy's.
        wanted: the policy's names of the cameras for which an error gives entries.

    Raises:
        SpatialForcingError: one is another camera of the data set; with the entries to give.
    """
    sources = {ours: theirs for theirs, ours in rename_map.items()}
    for ours, theirs in chosen.items():
        if ours in sources and theirs in dataset and sources[ours] != theirs:
            entries = {sources.get(name, name): name for name in wanted if sources.get(name, name) in dataset}
            raise SpatialForcingError(
                f"The policy's {ours} is the data set's {sources[ours]} (--rename_map), and {theirs} of the "
                "data set would be aligned in its place. Say which cameras are aligned: "
                f"--policy.forcing.cameras='{json.dumps(entries)}'."
            )


def said_rename_map() -> dict[str, str]:
    """The ``--rename_map`` of the training that this process was started for; empty if there is none.

    LeRobot tells it to no policy. It is read where LeRobot reads its own flags a second time, too: on the
    command line, and in the configuration file that it names. A training that a script configures says
    nothing there.
    """
    said, file = parser.parse_arg("rename_map"), parser.parse_arg("config_path")
    try:
        if said is not None:
            found = yaml.safe_load(said)
        elif file is not None and Path(file).is_file():
            found = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}).get("rename_map")
        else:
            return {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}  # LeRobot has read it, or it is the flag of another program
    if not isinstance(found, dict):
        return {}
    return {theirs: ours for theirs, ours in found.items() if isinstance(ours, str)}
