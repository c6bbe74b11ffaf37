"""The policy types ``sf_<type>``: for every host record, its configuration and one more field, ``forcing``.

The classes are made here from the records, so that a new host needs nothing in this package. LeRobot finds
policy and processors beside a configuration by module name: ``modeling_sf``, ``processor_sf``.
"""

import importlib
import weakref
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig

from lerobot_policy_spatial_forcing.augment import track_geometry
from lerobot_policy_spatial_forcing.crops import track_crops
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from spatial_forcing.chunks import read_chunks_without_pictures
from spatial_forcing.hosts.lerobot import RECORDS, PolicyRecord


class ForcedConfig:
    """What a configuration with forcing does differently: it is saved as the host's own."""

    plain_class: ClassVar[type]
    record: ClassVar[PolicyRecord]
    # The policy that trains with this configuration, which knows its projector.
    trains: "weakref.ref[Any] | None" = None
    forcing: ForcingConfig

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        # Before LeRobot makes the data set, which happens before it makes the policy.
        read_chunks_without_pictures()
        if self.forcing.cache is not None:
            track_geometry()
        stored_or_chosen = self.forcing.cache is not None or self.forcing.cameras is not None
        if stored_or_chosen and self.record.pictures is not None:
            track_crops()

    def plain(self) -> Any:
        """The host's own configuration, with the values of this one."""
        plain = object.__new__(self.plain_class)
        for f in fields(self.plain_class):
            setattr(plain, f.name, getattr(self, f.name))
        return plain

    def _save_pretrained(self, save_directory: Path) -> None:
        self.plain()._save_pretrained(save_directory)
        policy = self.trains and self.trains()
        # PEFT saves an adapter and asks nobody else. LeRobot then adds the configuration: the projector, too.
        if policy is not None and self.use_peft:  # type: ignore[attr-defined]
            policy.save_projector(save_directory)
            policy.name_plain_class(save_directory)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "trains"}


def forced_config_class(record: PolicyRecord) -> type:
    """The configuration of ``sf_<type>``: LeRobot's class for the host, and the field ``forcing``."""
    plain_class = getattr(importlib.import_module(record.configuration_module), record.config)

    @PreTrainedConfig.register_subclass(f"sf_{record.type}")
    @dataclass
    class SfConfig(ForcedConfig, plain_class):
        forcing: ForcingConfig = field(default_factory=ForcingConfig)

    SfConfig.plain_class, SfConfig.record = plain_class, record
    SfConfig.__name__ = SfConfig.__qualname__ = f"Sf{record.config}"
    SfConfig.__doc__ = f"{record.config} and one more field, ``forcing``."
    return SfConfig


CLASSES = {record.type: forced_config_class(record) for record in RECORDS.values()}
globals().update({cls.__name__: cls for cls in CLASSES.values()})
