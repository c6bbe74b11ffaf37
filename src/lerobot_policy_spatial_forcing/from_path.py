"""``--policy.path=<checkpoint> --policy.forcing.<name>=...``: a plain checkpoint, trained on with forcing.

LeRobot reads a checkpoint's configuration as the policy type that it names, and refuses flags which that type
does not have. With forcing flags, the type read is the one with forcing: ``smolvla`` becomes ``sf_smolvla``;
every other value is the checkpoint's.
"""

from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from spatial_forcing.errors import SpatialForcingError


class ForcedChoices:
    """Where ``PreTrainedConfig.from_pretrained`` looks up a type when there are forcing flags.

    Attributes:
        unknown: the type that was asked for, if it has no record.
    """

    def __init__(self) -> None:
        self.unknown: str | None = None

    def get_choice_class(self, name: str) -> type:
        plain = name.removeprefix("sf_")
        self.unknown = None if plain in CLASSES else plain
        return CLASSES[plain]

    def get_known_choices(self) -> list[str]:
        return list(CLASSES)


def follow_forcing_flags() -> None:
    """From now on, forcing flags beside ``--policy.path`` are understood. Idempotent."""
    plain = PreTrainedConfig.from_pretrained.__func__  # type: ignore[attr-defined]
    if hasattr(plain, "without_forcing"):
        return

    def from_pretrained(cls: Any, pretrained_name_or_path: str | Path, **options: Any) -> Any:
        flags = options.get("cli_overrides") or []
        if not any(str(flag).startswith("--forcing.") for flag in flags):
            return plain(cls, pretrained_name_or_path, **options)
        choices = ForcedChoices()
        try:
            return plain(choices, pretrained_name_or_path, **options)
        except ValueError:
            if choices.unknown is None:
                raise
        raise SpatialForcingError(
            f"{pretrained_name_or_path} is a policy of type {choices.unknown!r}, which Spatial Forcing has "
            f"no record of. It has: {', '.join(CLASSES)}. Without --policy.forcing flags it is trained plain."
        )

    from_pretrained.without_forcing = plain  # type: ignore[attr-defined]
    PreTrainedConfig.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
