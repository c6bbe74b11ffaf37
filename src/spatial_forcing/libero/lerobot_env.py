"""Checks of LeRobot's configuration of LIBERO (``--env.type=libero``) before its environment is made.

LeRobot says KeyError, or nothing until the first reset.
"""

from collections.abc import Mapping
from typing import Any

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.libero.install import check_importable
from spatial_forcing.libero.suites import check_numbers, check_suite

CONTROL_MODES = ("relative", "absolute")
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def check_env(config: Any) -> None:
    """Checks that LIBERO can be imported, and that it has what a configuration names.

    Args:
        config: LeRobot's ``LiberoEnv`` configuration, or LIBERO-plus's, whose tasks are its own.

    Raises:
        LiberoError: LIBERO is not installed, or would wait for answers on the console.
        UnknownNameError: a suite, camera or control mode that there is not.
        SpatialForcingError: a task's number that there is not.
    """
    check_importable()
    if config.control_mode not in CONTROL_MODES:
        raise UnknownNameError("--env.control_mode", config.control_mode, CONTROL_MODES)
    names: Mapping[str, str] = config.camera_name_mapping or dict.fromkeys(CAMERAS, "")
    for name in (one.strip() for one in config.camera_name.split(",")):
        if name not in names:
            raise UnknownNameError("--env.camera_name", name, names)
    if config.type != "libero":
        return
    for suite in (one.strip() for one in config.task.split(",")):
        check_suite(suite)
        check_numbers(suite, config.task_ids or ())


def advice_of(config: Any) -> str:
    """What to try if LIBERO's environment cannot be made for another reason."""
    return (
        f"See what of LIBERO is there: spatial-forcing libero check --suites {config.task.replace(',', ' ')}"
    )
