"""Checks of command and option names before parsing: mistyped and renamed ones."""

from collections.abc import Collection
from itertools import takewhile

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

SUBCOMMANDS = {
    "cache": ("verify",),
    "compare": ("status", "transfer"),
    "calibration": ("check",),
    "libero": ("check", "collect"),
}
# Commands that are nothing without their subcommand.
ONLY_WITH_SUBCOMMAND = ("calibration", "libero")
# Commands on one folder, which may be given without its option: `report runs/mine`.
ON_A_FOLDER = (("report",), ("compare", "status"))
# What was called otherwise before 0.1: commands, and options by command.
RENAMED_COMMANDS = {"demos": "collect"}
# Commands that hand what follows -- to LeRobot: what that is, and how they are called.
WITH_LEROBOTS_FLAGS = {
    "compare": ("all flags of lerobot-train", "--out <folder> -- --policy.type=<type> --steps=<steps> ..."),
    "compare transfer": ("--env flags", "--of <folder> --out <another> -- --env.task=<task>"),
    "eval": ("--env flags", "--policies a=<folder> b=<folder> -- --env.type=<type> --env.task=<task>"),
}
RENAMED_OPTIONS = {
    "demo": {"--weight": "--loss-weight"},
    "cache": {"--weights": "--teacher-checkpoint"},
    "doctor": {"--weights": "--teacher-checkpoint", "--depth": "--site"},
}
# The same of --policy.forcing.<name>. LeRobot's parser refuses a flag that is no field with 600 lines of
# usage; these are fields, and refuse a value with the new name.
RENAMED_FORCING = {
    "weight": "loss_weight",
    "weights": "teacher_checkpoint",
    "coefficients": "pca_targets",
    "depth": "site",
    "ratio_every": "diagnostics_every",
}


def check_names(arguments: list[str], commands: Collection[str]) -> None:
    """Checks the names on a command line before its options are parsed.

    Args:
        arguments: what follows the program's name.
        commands: the names of all commands.

    Raises:
        UnknownNameError: no such command, or no such subcommand.
        SpatialForcingError: a command or an option has been renamed; says its new name. Or flags of LeRobot
            are not behind ``--``.
    """
    name, *second = words(arguments) or [None]
    if name in RENAMED_COMMANDS:
        raise SpatialForcingError(f"The command {name} is called {RENAMED_COMMANDS[name]} now.")
    if name is not None and name not in commands:
        raise UnknownNameError("command", name, commands)
    if name in ONLY_WITH_SUBCOMMAND and not second:
        listed = ", ".join(f"{name} {one}" for one in SUBCOMMANDS[name])
        raise SpatialForcingError(f"The command {name} needs a subcommand: {listed}.")
    if second and name in SUBCOMMANDS and second[0] not in SUBCOMMANDS[name]:
        raise UnknownNameError(f"subcommand of {name}", second[0], SUBCOMMANDS[name])
    options = [argument.partition("=")[0] for argument in parted(arguments)[0] if argument.startswith("-")]
    # None of ours has a dot.
    lerobots = [option for option in options if option.startswith("--") and "." in option]
    command = " ".join(words(arguments))
    if lerobots and command in WITH_LEROBOTS_FLAGS:
        which, example = WITH_LEROBOTS_FLAGS[command]
        raise SpatialForcingError(
            f"{', '.join(lerobots)}: LeRobot's flags ({which}) come last, behind --, as in: spatial-forcing "
            f"{command} {example}"
        )
    for option in options:
        if name is not None and (new := RENAMED_OPTIONS.get(name, {}).get(option)):
            raise SpatialForcingError(f"The option {option} of {name} is called {new} now.")


def words(arguments: list[str]) -> list[str]:
    """The words before the first option: the command and its subcommand."""
    return list(takewhile(lambda word: not word.startswith("-"), arguments[:2]))


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments at ``--``: what precedes it, and what follows."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def with_out(arguments: list[str]) -> list[str]:
    """Puts ``--out`` before a folder that is given without it."""
    for command in ON_A_FOLDER:
        at = len(command)
        if tuple(arguments[:at]) == command and arguments[at:] and not arguments[at].startswith("-"):
            return [*command, "--out", *arguments[at:]]
    return arguments
