"""Normalisation of actions and proprioception by the statistics in OpenVLA's checkpoints.

A statistics file maps un-normalisation keys (names of data sets) to records with `action` and, sometimes,
`proprio`: lists `q01`, `q99`, `min`, `max`, and `mask` (true where a number is normalised).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

NORMALISATIONS = {"q99": ("q01", "q99"), "bounds": ("min", "max")}
# The public code adds it to a range, in both directions.
EPSILON = 1e-8


class StatisticsError(SpatialForcingError, ValueError):
    """Statistics of a data set are missing, or are not what the model needs."""


@dataclass(frozen=True)
class Bounds:
    """Range of the numbers of an action or a state, which becomes [-1, 1] where the mask is true.

    Attributes:
        low, high: ends of the range.
        mask: which numbers are normalised; others pass unchanged.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]

    @property
    def width(self) -> int:
        return len(self.low)

    def normalise(self, values: Tensor) -> Tensor:
        """Maps the range to [-1, 1] and clips to it; numbers that never change become 0.

        The clipping applies where the mask is true. Numbers are along the last dimension of `values`
        (floating point), whose dtype stays.
        """
        low, high, mask, x = self._tensors(values)
        scaled = (2 * (x - low) / (high - low + EPSILON) - 1).clamp(-1, 1)
        scaled = torch.where(low == high, torch.zeros_like(scaled), scaled)
        return torch.where(mask, scaled, x).to(values.dtype)

    def unnormalise(self, values: Tensor) -> Tensor:
        """Maps [-1, 1] to the range; the inverse of `normalise` within it."""
        low, high, mask, x = self._tensors(values)
        scaled = 0.5 * (x + 1) * (high - low + EPSILON) + low
        return torch.where(mask, scaled, x).to(values.dtype)

    def _tensors(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not values.is_floating_point() or values.shape[-1:] != (self.width,):
            raise ValueError(
                f"Expected floating-point values with {self.width} numbers in the last dimension, got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
        x = values.to(torch.promote_types(values.dtype, torch.float32))
        low, high = x.new_tensor(self.low), x.new_tensor(self.high)
        return low, high, torch.tensor(self.mask, device=x.device), x


class Statistics:
    """Statistics of data sets by un-normalisation key.

    Args:
        records: content of `dataset_statistics.json`, or `norm_stats` of a config.json.
        normalisation: "q99" or "bounds".

    Raises:
        StatisticsError: the records are no mapping of keys to objects.
    """

    def __init__(self, records: Mapping[str, Any], normalisation: Literal["q99", "bounds"] = "q99"):
        wrong = [key for key, record in records.items() if not isinstance(record, Mapping)]
        if wrong:
            raise StatisticsError(
                f"Expected an object with 'action' under each key of the statistics, found a "
                f"{type(records[wrong[0]]).__name__} under {wrong[0]!r}."
            )
        self.records, self.normalisation = records, normalisation

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.records))

    def resolve(self, key: str | None) -> str:
        """The un-normalisation key to use.

        Args:
            key: a name of a data set, which must be there; None for the only one.

        Raises:
            UnknownNameError: there is no such key; the message lists those that are, and the nearest.
            StatisticsError: none was named and there are several, or none.
        """
        if key is not None:
            if key not in self.records:
                raise UnknownNameError("un-normalisation key", key, self.records)
            return key
        if len(self.records) != 1:
            found = ", ".join(self.keys) or "none"
            raise StatisticsError(
                f"Name the un-normalisation key: expected statistics of one data set, found "
                f"{len(self.records)} ({found})."
            )
        return next(iter(self.records))

    def bounds(self, key: str | None = None, of: Literal["action", "proprio"] = "action") -> Bounds:
        """Range of a data set's actions or proprioceptive states.

        Raises:
            UnknownNameError, StatisticsError: see `resolve`; or the record has no such range.
        """
        key = self.resolve(key)
        record = self.records[key].get(of)
        ends = NORMALISATIONS[self.normalisation]
        if not isinstance(record, Mapping) or any(end not in record for end in ends):
            found = ", ".join(record) if isinstance(record, Mapping) else f"no {of!r}"
            raise StatisticsError(
                f"The statistics of {key!r} must have {' and '.join(ends)} of {of!r}, found {found}."
            )
        low, high = (_numbers(record[end], key, f"{of}.{end}") for end in ends)
        mask = record.get("mask", [True] * len(low))
        if not isinstance(mask, list) or not len(low) == len(high) == len(mask):
            lengths = (len(low), len(high), len(mask) if isinstance(mask, list) else type(mask).__name__)
            raise StatisticsError(
                f"{' and '.join(ends)} and mask of {of!r} of {key!r} must be of one length, found {lengths}."
            )
        return Bounds(low, high, tuple(bool(x) for x in mask))


def _numbers(found: Any, key: str, name: str) -> tuple[float, ...]:
    numbers = isinstance(found, list) and all(type(x) in (int, float) for x in found)
    if not numbers:
        raise StatisticsError(f"{name} of {key!r} must be a list of numbers, found {str(found)[:60]}.")
    return tuple(float(x) for x in found)
