"""The policy types ``sf_<type>``: for every host record, its configuration and one more field, ``forcing``.

The classes are made here from the records, so that a new host, ours or another package's, needs nothing in
this package. LeRobot finds policy and processors beside a configuration by module name: ``modeling_sf``,
``processor_sf``.
"""

import importlib
import logging
import weakref
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig

from lerobot_policy_spatial_forcing.forcing_config import ForcingConfig
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.hosts.registry import RECORDS


class ForcedConfig:
    """Mixin for policy configurations with forcing: they are saved as the host's plain configuration."""

    plain_class: ClassVar[type]
    record: ClassVar[PolicyRecord]
    # The policy that trains with this configuration, which knows its projector.
    trains: "weakref.ref[Any] | None" = None
    forcing: ForcingConfig

    def plain(self) -> Any:
        """The host's plain configuration, with the values of this one."""
        plain = object.__new__(self.plain_class)
        for f in fields(self.plain_class):
            setattr(plain, f.name, getattr(self, f.name))
        return plain

    def _save_pretrained(self, save_directory: Path) -> None:
        self.plain()._save_pretrained(save_directory)
        policy = self.trains and self.trains()
        if policy is not None:
            policy.configuration_saved(save_directory)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "trains"}


def forced_config_class(record: PolicyRecord) -> type:
    """The configuration class of ``sf_<type>``: LeRobot's class for the host plus the field ``forcing``."""
    plain_class = getattr(importlib.import_module(record.configuration_module), record.config)

    @PreTrainedConfig.register_subclass(f"sf_{record.type}")
    @dataclass
    class SfConfig(ForcedConfig, plain_class):
        forcing: ForcingConfig = field(default_factory=ForcingConfig)

    SfConfig.plain_class, SfConfig.record = plain_class, record
    SfConfig.__name__ = SfConfig.__qualname__ = f"Sf{record.config}"
    SfConfig.__doc__ = f"{record.config} and one more field, ``forcing``."
    return SfConfig


def forced_config_classes() -> dict[str, type]:
    """The configuration classes of all host records, by policy type.

    A host of another package that cannot be loaded is left out with a warning: it must not stop LeRobot.
    """
    ours, made, names = RECORDS.own(), {}, set()
    for kind, record in RECORDS.working().items():
        try:
            if record.config in names:  # LeRobot finds a policy by the name of its configuration
                raise ValueError(f"another host has a configuration class {record.config}, too")
            made[kind] = forced_config_class(record)
            names.add(record.config)
        except Exception as error:
            if kind in ours:
                raise
            reason = f"{type(error).__name__}: {error}"
            logging.getLogger(__name__).warning("There is no sf_%s: %s", kind, reason)
    return made


CLASSES = forced_config_classes()
globals().update({cls.__name__: cls for cls in CLASSES.values()})
