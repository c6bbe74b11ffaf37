"""Normalisation of the built-in policy: a number that stood still in training is centred and not scaled.

LeRobot divides by the deviation + 1e-8, so that a gripper which never moved in the demonstrations and moves
by 0.002 in a rollout comes to 1e5 deviations. Where a checkpoint is trained on, its trainer replaces the
statistics of steps that it knows by the names of their classes: hence the names of these two, which mend
whatever statistics they are given.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

POINTS = "observation.points"
# A deviation below this is no motion: a millimetre, a thousandth of the gripper's way.
STILL = 1e-3


class _ScalesOnlyWhatMoved:
    """Mends the statistics that a step is made with, before LeRobot's own initialisation."""

    # Saved by its class: the registered name is that of LeRobot's own.
    _registry_name = None
    stats: dict[str, Any] | None

    def __post_init__(self) -> None:
        self.stats = scaling_only_what_moved(self.stats)
        super().__post_init__()  # type: ignore[misc]  # of LeRobot's step


@dataclass
class normalizer_processor(_ScalesOnlyWhatMoved, NormalizerProcessorStep):
    """LeRobot's normaliser; points stay metres."""


@dataclass
class unnormalizer_processor(_ScalesOnlyWhatMoved, UnnormalizerProcessorStep):
    """Its inverse, for actions."""


def like[Step](kind: type[Step], step: Any) -> Step:
    """One of LeRobot's steps as one of these."""
    return kind(**{field.name: getattr(step, field.name) for field in fields(step) if field.init})


def scaling_only_what_moved(stats: dict[str, Any] | None) -> dict[str, Any] | None:
    """Statistics with a deviation of 1 for numbers that did not move, and none of points."""
    return stats and {key: _without_still(of) for key, of in stats.items() if key != POINTS}


def _without_still(of: dict[str, Any]) -> dict[str, Any]:
    if "std" not in of:
        return of
    std = torch.as_tensor(of["std"])
    return {**of, "std": torch.where(std < STILL, torch.ones_like(std), std)}
