"""Patch for forcing flags beside ``--policy.path``: training a plain checkpoint on with forcing.

LeRobot reads a checkpoint's configuration as the policy type that it names, and refuses flags which that type
does not have. With forcing flags, the type read is the one with forcing: ``smolvla`` becomes ``sf_smolvla``;
every other value is the checkpoint's.
"""

from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.patches.record import LeRobotChanged, Patch, lerobots, replace

WITH_FORCING = "sf_"


class ForcedChoices:
    """Registry in which ``PreTrainedConfig.from_pretrained`` looks up types when there are forcing flags.

    Attributes:
        unknown: the type that was asked for, if there is none of it with forcing.
    """

    def __init__(self, patch: Patch, choices: Any) -> None:
        self._patch, self._choices = patch, choices
        self.unknown: str | None = None

    def get_choice_class(self, name: str) -> type:
        plain = name.removeprefix(WITH_FORCING)
        self.unknown = None if plain in self.get_known_choices() else plain
        return self._choices.get_choice_class(WITH_FORCING + plain)

    def get_known_choices(self) -> list[str]:
        known = self._choices.get_known_choices()
        return [name.removeprefix(WITH_FORCING) for name in known if name.startswith(WITH_FORCING)]

    def __getattr__(self, name: str) -> Any:
        raise LeRobotChanged(self._patch, f"PreTrainedConfig.from_pretrained asks its class for {name}")


def take(patch: Patch) -> None:
    """Patch: LeRobot accepts forcing flags beside ``--policy.path``."""
    owner = lerobots(patch, "lerobot.configs", "PreTrainedConfig")
    method = lerobots(
        patch,
        "lerobot.configs",
        "PreTrainedConfig.from_pretrained",
        "pretrained_name_or_path",
        "policy_kwargs",
    )
    plain = method.__func__

    def from_pretrained(cls: Any, pretrained_name_or_path: str | Path, **options: Any) -> Any:
        flags = options.get("cli_overrides") or []
        if not any(str(flag).startswith("--forcing.") for flag in flags):
            return plain(cls, pretrained_name_or_path, **options)
        choices = ForcedChoices(patch, cls)
        try:
            return plain(choices, pretrained_name_or_path, **options)
        except ValueError:
            if choices.unknown is None:
                raise
        raise SpatialForcingError(
            f"{pretrained_name_or_path} is a policy of type {choices.unknown!r}, which Spatial Forcing has "
            f"no record of. It has: {', '.join(choices.get_known_choices())}. Without --policy.forcing flags "
            "it is trained plain."
        )

    replace(patch, owner, "from_pretrained", classmethod(from_pretrained))
