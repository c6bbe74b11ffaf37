"""Smooth L1 loss between normalised tokens: like the cosine, but bounded for outlier channels."""

import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.losses import mean_of_valid, only_valid


def smooth_l1(
    projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor, weight_BN: Tensor | None = None
) -> Tensor:
    """Mean over valid tokens and channels of smooth-L1(p - y), p and y scaled to a mean square of 1.

    Computed in float32. At most the cosine distance, and equal to it where no channel differs by more than 1:
    a channel in which the target is an outlier pulls with a bounded force. Zero if and only if every valid
    pair is parallel; invariant to either side's scale.
    """
    projected, target = only_valid(projected_BNC, target_BNC, valid_BN)
    length = projected.shape[-1] ** 0.5
    p, y = (length * F.normalize(side, dim=-1) for side in (projected, target))
    return mean_of_valid(F.smooth_l1_loss(p, y, reduction="none").mean(-1), valid_BN, weight_BN)


LOSS = smooth_l1
