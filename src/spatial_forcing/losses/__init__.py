"""Alignment losses between projected visual tokens and their targets: one function per file, by name.

A loss is a function ``(projected_BNC, target_BNC, valid_BN) -> scalar``: float32, 0 where nothing is valid,
with gradient to valid tokens only. Adding one is adding a file here with ``LOSS = <the function>``, or an
entry point in the group ``spatial_forcing.losses`` of another package.

Shapes: B batch, N visual tokens, C width of the target.
"""

from collections.abc import Callable

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.registry import Functions

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

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


def mean_of_valid(distance_BN: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean over valid tokens, 0 if there are none."""
    return distance_BN.where(valid_BN, 0.0).sum() / valid_BN.sum().clamp(min=1)
