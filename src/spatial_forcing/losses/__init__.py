"""Alignment losses between projected visual tokens and their targets: one function per file, by name.

A loss is a function ``(projected_BNC, target_BNC, valid_BN) -> scalar``: float32, 0 where nothing is valid,
with gradient to valid tokens only. One that can weigh tokens takes ``weight_BN``, too, 0 or more, and gives a
weighted mean: the scale of the weights does not matter, and equal ones are none. Adding a loss is adding a
file here with ``LOSS = <the function>``, or an entry point in the group ``spatial_forcing.losses`` of another
package.

Shapes: B batch, N visual tokens, C width of the target.
"""

from collections.abc import Callable
from inspect import signature

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.registry import Functions

Loss = Callable[..., Tensor]
WEIGHT = "weight_BN"

LOSSES = Functions[Loss]("loss", attribute="LOSS", package=__name__)


def loss_of(loss: str | Loss) -> Loss:
    """A loss by name, or the function itself.

    Raises:
        UnknownNameError: there is no loss of that name.
        SpatialForcingError: it is neither.
    """
    if isinstance(loss, str):
        return LOSSES[loss]
    if not callable(loss):
        raise SpatialForcingError(
            f"A loss is a name ({', '.join(LOSSES)}) or a function (projected_BNC, target_BNC, "
            f"valid_BN) -> scalar; got {loss!r}."
        )
    return loss


def check_weighs(loss: Loss) -> None:
    """Raises :class:`SpatialForcingError` unless a loss can weigh tokens."""
    try:
        takes = WEIGHT in signature(loss).parameters
    except (TypeError, ValueError):  # a callable that does not say
        takes = False
    if not takes:
        able = [name for name, known in LOSSES.items() if WEIGHT in signature(known).parameters]
        raise SpatialForcingError(
            f"The loss {getattr(loss, '__name__', loss)} takes no weights of tokens (an argument {WEIGHT}). "
            f"These do: {', '.join(able)}."
        )


def only_valid(projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces invalid tokens on both sides by ones, which have no gradient; in float32.

    Raises:
        SpatialForcingError: the shapes do not fit together.
    """
    if projected_BNC.shape != target_BNC.shape or valid_BN.shape != target_BNC.shape[:-1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (projected_BNC, target_BNC, valid_BN))
        raise SpatialForcingError(f"Projected, target and mask must have one shape (B, N, C), got {shapes}.")
    projected = projected_BNC.float().where(valid_BN[..., None], 1.0)
    return projected, target_BNC.float().where(valid_BN[..., None], 1.0)


def mean_of_valid(distance: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over what is valid (tokens, or pairs of them), weighted if there are weights; 0 if nothing is.

    Args:
        distance, valid, weight: of one shape.
    """
    if weight is None:
        return distance.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
    weight = weight.float().where(valid, 0.0)
    total = weight.sum()
    return (distance.where(valid, 0.0) * weight).sum() / total.where(total > 0, 1.0)
