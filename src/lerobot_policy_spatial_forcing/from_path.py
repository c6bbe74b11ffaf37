"""``--policy.path=<checkpoint> --policy.forcing.<name>=...``: a plain checkpoint, trained on with forcing.

LeRobot reads a checkpoint's configuration as the policy type that it names, and refuses flags which that type
does not have. With forcing flags, the type read is the one with forcing: ``smolvla`` becomes ``sf_smolvla``;
every other value is the checkpoint's.
"""

from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES


class ForcedChoices:
    """Where ``PreTrainedConfig.from_pretrained`` looks up a type when there are forcing flags."""

    @staticmethod
    def get_choice_class(name: str) -> type:
        return CLASSES[name.removeprefix("sf_")]

    @staticmethod
    def get_known_choices() -> str:
        return f"{', '.join(CLASSES)} (those that --policy.forcing flags can be given for)"


def follow_forcing_flags() -> None:
    """From now on, forcing flags beside ``--policy.path`` are understood. Idempotent."""
    plain = PreTrainedConfig.from_pretrained.__func__  # type: ignore[attr-defined]
    if hasattr(plain, "without_forcing"):
        return

    def from_pretrained(cls: Any, pretrained_name_or_path: str | Path, **options: Any) -> Any:
        flags = options.get("cli_overrides") or []
        forced = any(str(flag).startswith("--forcing.") for flag in flags)
        return plain(ForcedChoices if forced else cls, pretrained_name_or_path, **options)

    from_pretrained.without_forcing = plain  # type: ignore[attr-defined]
    PreTrainedConfig.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
