"""Range checks of the objective's numeric options.

Shapes: C channels of the teacher.
"""

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError


def checked_weight(weight: float) -> float:
    """Validates an alignment's weight: raises :class:`SpatialForcingError` unless finite and at least 0."""
    if not (isinstance(weight, Real) and math.isfinite(weight) and weight >= 0):
        raise SpatialForcingError(
            f"The weight of Spatial Forcing must be a finite number, 0 or more, got {weight!r}."
        )
    return weight


def checked_span(start: int, end: int) -> None:
    """Raises :class:`SpatialForcingError` unless a schedule goes from a step, 0 or later, to a later one."""
    whole = isinstance(start, Integral) and isinstance(end, Integral)
    if not (whole and 0 <= start < end):
        raise SpatialForcingError(
            f"A schedule goes from step start, a whole number from 0 on, to a later step end; got "
            f"{start!r} to {end!r}."
        )


def check_position_embedding(position_embedding: float) -> None:
    """Raises :class:`SpatialForcingError` unless the share is 0 to 1."""
    if not isinstance(position_embedding, Real) or not 0 <= position_embedding <= 1:
        raise SpatialForcingError(
            "The position embedding is added to the features as a share of their size, 0 (none) to 1 (as "
            f"much again), 0.1 by default; got {position_embedding!r}."
        )


def check_together(
    projector: str, norm: str, points: str | None, position_embedding: float, spatial_norm: bool
) -> None:
    """Raises :class:`SpatialForcingError` for options of an alignment of which one would have no effect."""
    if projector == "conv" and norm != "layer":
        raise SpatialForcingError(
            f"projector='conv' has no norm, and norm={norm!r} is one of the mlp: leave norm out, or use "
            "projector='mlp'."
        )
    if points == "added" and not position_embedding:
        raise SpatialForcingError(
            "points='added' adds the points' embedding at the scale position_embedding, and that is 0: the "
            "target would have no points. Give a scale above 0 (0.1 by default), or leave points out."
        )
    if points == "alone" and spatial_norm:
        raise SpatialForcingError(
            "spatial_norm standardises the teacher's features, and with points='alone' the target has none: "
            "leave spatial_norm out, or use points='concatenated'."
        )


def check_statistics_pair(standardize: Any) -> None:
    """Raises :class:`SpatialForcingError` unless this is a mean and a deviation."""
    pair = isinstance(standardize, tuple) and len(standardize) == 2
    if not pair or not all(isinstance(of, Tensor) for of in standardize):
        raise SpatialForcingError(
            "standardize takes mean and deviation of the features, (mean_C, std_C): FeatureStore(root).stats "
            f"of a cache; got {standardize!r}."
        )


def checked_statistics(mean_C: Tensor, std_C: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Validates mean and standard deviation: raises unless finite and of ``width`` channels."""
    if not tuple(mean_C.shape) == tuple(std_C.shape) == (width,):
        raise SpatialForcingError(
            f"standardize needs mean and deviation of each of the teacher's {width} channels, got shapes "
            f"{tuple(mean_C.shape)} and {tuple(std_C.shape)}."
        )
    wrong = int((~(mean_C.isfinite() & std_C.isfinite() & (std_C >= 0))).sum())
    if wrong:
        raise SpatialForcingError(
            f"standardize got a mean or deviation that is not finite, or a negative deviation, in {wrong} of "
            f"{width} channels: the features it was computed from hold NaN or infinity."
        )
    return mean_C, std_C
