"""``forcing.cameras``: which of a policy's cameras are aligned, in which order, and their names in the data.

A list names cameras as the policy does. A mapping is what ``--rename_map`` takes, for the cameras to align:
the data set's name of a camera for the policy's. Either way the teacher sees these cameras and no others, in
this order: what a teacher that attends across views says of one depends on the others.
"""

from collections.abc import Collection, Sequence

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
