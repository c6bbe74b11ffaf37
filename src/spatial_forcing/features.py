"""Features of a teacher on its token grid, with a mask and with what is known of each token.

Shapes: B batch, V views, H W rows and columns of the grid, C channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError


class Features(NamedTuple):
    """Teacher patch features for a batch of images, with a mask of the valid ones.

    Attributes:
        tokens_BVHWC: features, any floating dtype.
        valid_BVHW: bool; False where a view is missing, padded or warped out of the image.
    """

    tokens_BVHWC: Tensor
    valid_BVHW: Tensor

    @property
    def points_BVHW3(self) -> Tensor | None:
        """The point that each token shows, where these are :class:`AnnotatedFeatures` with points."""
        return None

    @property
    def weights_BVHW(self) -> Tensor | None:
        """The weight of each token in the loss, where these are :class:`AnnotatedFeatures` with weights."""
        return None

    def with_points(self, points_BVHW3: Tensor | None) -> "Features":
        """The same features with the points that the tokens show, or without any."""
        return annotated(self, points_BVHW3, self.weights_BVHW)

    def with_weights(self, weights_BVHW: Tensor | None) -> "Features":
        """The same features with the weights of the tokens, or without any."""
        return annotated(self, self.points_BVHW3, weights_BVHW)

    def checked(self) -> "Features":
        """Returns itself, or raises :class:`SpatialForcingError` if shapes or dtypes do not fit together."""
        tokens, valid = self.tokens_BVHWC, self.valid_BVHW
        if not isinstance(tokens, Tensor) or not isinstance(valid, Tensor):
            found = f"{type(tokens).__name__} and {type(valid).__name__}"
            raise SpatialForcingError(f"Features need two tensors, tokens and a mask, got {found}.")
        if tokens.ndim != 5:
            raise SpatialForcingError(f"Features need tokens (B, V, H, W, C), got {tuple(tokens.shape)}.")
        if valid.shape != tokens.shape[:4]:
            raise SpatialForcingError(
                f"Features need a mask of shape {tuple(tokens.shape[:4])} (B, V, H, W) for tokens of shape "
                f"{tuple(tokens.shape)}, got {tuple(valid.shape)}."
            )
        if valid.dtype != torch.bool or not tokens.is_floating_point():
            raise SpatialForcingError(
                f"Features need floating tokens and a bool mask, got {tokens.dtype} and {valid.dtype}."
            )
        points = self.points_BVHW3
        if points is not None and points.shape != (*valid.shape, 3):
            raise SpatialForcingError(
                f"Features need points of shape {(*valid.shape, 3)} (B, V, H, W, 3) for tokens of shape "
                f"{tuple(tokens.shape)}, got {tuple(points.shape)}."
            )
        weights = self.weights_BVHW
        if weights is not None and (weights.shape != valid.shape or not weights.is_floating_point()):
            raise SpatialForcingError(
                f"Features need floating weights of shape {tuple(valid.shape)} (B, V, H, W) for tokens of "
                f"shape {tuple(tokens.shape)}, got {weights.dtype} of {tuple(weights.shape)}."
            )
        return self

    def of_views(self, views: Sequence[int]) -> "Features":
        """The features of some views, in this order."""
        at = list(views)
        return self.mapped(lambda part: part[:, at])

    def mapped(self, move: Callable[[Tensor], Tensor]) -> "Features":
        """The same features with tokens, mask, points and weights moved alike."""
        points, weights = (
            None if part is None else move(part) for part in (self.points_BVHW3, self.weights_BVHW)
        )
        return annotated(Features(move(self.tokens_BVHWC), move(self.valid_BVHW)), points, weights)

    def check_finite(self) -> None:
        """Raises :class:`SpatialForcingError` if a valid token holds NaN or infinity, or has such a weight.

        What is not valid may hold anything. On an accelerator this waits for it.
        """
        if self.weights_BVHW is not None and not self.weights_BVHW[self.valid_BVHW].isfinite().all():
            raise SpatialForcingError("A weight of a valid token is NaN or infinity; weights are 0 or more.")
        bad_BVHW = self.valid_BVHW & ~self.tokens_BVHWC.isfinite().all(-1)
        if bad_BVHW.any():
            b, v, h, w = bad_BVHW.nonzero()[0].tolist()
            raise SpatialForcingError(
                f"{int(bad_BVHW.sum())} of {int(self.valid_BVHW.sum())} valid tokens of the features hold "
                f"NaN or infinity; the first is in sample {b}, view {v}, row {h}, column {w}. A teacher's "
                "damaged weights do that, and half precision that overflows. Tokens that say nothing are to "
                "be marked as not valid."
            )


class AnnotatedFeatures(Features):
    """Features with what is known of each token beside them; they unpack as features do.

    Args:
        tokens_BVHWC, valid_BVHW: see :class:`Features`.
        points_BVHW3: the 3D point that a token shows: metres, in one frame; not finite where not known. None
            without points. See ``spatial_forcing.geometry``.
        weights_BVHW: how much a token counts in the loss, 0 or more. None if all count alike.
    """

    def __new__(
        cls,
        tokens_BVHWC: Tensor,
        valid_BVHW: Tensor,
        points_BVHW3: Tensor | None = None,
        weights_BVHW: Tensor | None = None,
    ) -> "AnnotatedFeatures":
        made = super().__new__(cls, tokens_BVHWC, valid_BVHW)
        made.__dict__ |= {"points_BVHW3": points_BVHW3, "weights_BVHW": weights_BVHW}
        return made

    @property
    def points_BVHW3(self) -> Tensor | None:
        return self.__dict__["points_BVHW3"]

    @property
    def weights_BVHW(self) -> Tensor | None:
        return self.__dict__["weights_BVHW"]

    def _replace(self, **changed: Tensor) -> Features:
        return annotated(super()._replace(**changed), self.points_BVHW3, self.weights_BVHW)

    def __getnewargs__(self) -> tuple[Tensor, ...]:
        return (*self, self.__dict__["points_BVHW3"], self.__dict__["weights_BVHW"])


def annotated(features: Features, points_BVHW3: Tensor | None, weights_BVHW: Tensor | None) -> Features:
    """Features with these points and weights and no others; plain ones without either."""
    tokens_BVHWC, valid_BVHW = features
    if points_BVHW3 is None and weights_BVHW is None:
        return Features(tokens_BVHWC, valid_BVHW)
    return AnnotatedFeatures(tokens_BVHWC, valid_BVHW, points_BVHW3, weights_BVHW)
