"""Parsing of the flags of LeRobot's commands with LeRobot's own parser, with errors as one message.

LeRobot prints 400 lines of usage, wraps an error several times, or shows a traceback.
"""

import io
import re
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from typing import Any

from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.import_utils import register_third_party_plugins

from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.guard import message_of_ours
from spatial_forcing.patches import take_forcing_flags
from spatial_forcing.train import command_line

RENAMED_FLAGS = {f"--policy.forcing.{old}": f"--policy.forcing.{new}" for old, new in RENAMED_FORCING.items()}
FLAG = re.compile(r"--[\w.]+")
CHOICE = re.compile(r"(?:argument (--[\w.]+): )?invalid choice: '(.*)' \(choose from (.*)\)")


class FlagError(SpatialForcingError):
    """LeRobot cannot read some flags, or cannot train with them."""


def read_config(arguments: list[str]) -> TrainPipelineConfig:
    """Parses a training command into LeRobot's configuration.

    Raises:
        FlagError: LeRobot does not take these flags.
        SystemExit: they ask for help.
    """
    register_third_party_plugins()
    take_forcing_flags()
    return read_flags(TrainPipelineConfig, arguments, "lerobot-train")


def read_flags[C](config_class: type[C], arguments: list[str], command: str) -> C:
    """Parses flags into a configuration with LeRobot's parser.

    Args:
        config_class: a dataclass as LeRobot's commands have them.
        arguments: the flags.
        command: whose ``--help`` lists all flags, for messages.

    Raises:
        FlagError: LeRobot does not take these flags.
        SystemExit: they ask for help.
    """
    register_third_party_plugins()

    def itself(config: Any) -> Any:
        return config

    itself.__annotations__ = {"config": config_class}  # where LeRobot's parser looks for the class
    config_of: Any = parser.wrap()(itself)
    said = io.StringIO()
    with command_line(*arguments), redirect_stderr(said):
        try:
            return config_of()
        except SpatialForcingError:
            raise
        except SystemExit as stop:
            if not stop.code:
                raise
            raise FlagError(reading_error(stop, said.getvalue(), command)) from stop
        except Exception as error:
            file = parser.parse_arg("config_path", arguments)
            where = (
                ""
                if file is None or isinstance(error, ArgumentError)
                else f"--config_path={file} cannot be read: "
            )
            raise FlagError(where + flag_error(error)) from error


def reading_error(stop: SystemExit, said: str, command: str) -> str:
    """The message of a parsing error that LeRobot or argparse printed before it exited."""
    if stop.__context__ is not None and not isinstance(stop.__context__, ArgumentError):
        return flag_error(stop.__context__)
    *usage, last = said.strip().splitlines() or [""]
    message = last.partition(" error: ")[2] or last
    if choice := CHOICE.match(message):
        return str(UnknownNameError(choice[1] or "choice", choice[2], choice[3].replace("'", "").split(", ")))
    unknown = message.startswith("unrecognized arguments") and FLAG.search(message)
    near = get_close_matches(unknown[0], FLAG.findall("\n".join(usage)), n=1) if unknown else []
    hint = f" Did you mean {RENAMED_FLAGS.get(near[0], near[0])}?" if near else ""
    return f"{message}.{hint} All flags: {command} --help"


def flag_error(error: BaseException) -> str:
    """The message of the innermost informative error in flags: draccus wraps it several times."""
    ours = message_of_ours(error)
    if ours is not None:
        return ours
    keys: Sequence[str] = ()
    while True:
        keys = max(keys, getattr(error, "key_path", ()), key=len)
        if error.__cause__ is None or not _wraps(error):
            break
        error = error.__cause__
    message = str(getattr(error, "message", error)) or type(error).__name__
    if "Missing required field(s) `dataset`" in message:
        message = "Say which data set: --dataset.repo_id=<name>, and --dataset.root=<folder> for one here"
    return f"--{'.'.join(keys)}: {message}" if keys else message


def _wraps(error: BaseException) -> bool:
    """Whether an error of draccus is less informative than its cause."""
    if not type(error).__module__.startswith("draccus."):
        return False
    emptier = ("Couldn't instantiate", "Failed when parsing", "Could not decode", "Failed to load config")
    return str(getattr(error, "message", error)).startswith(emptier)
