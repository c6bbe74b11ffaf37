"""Cosine loss, the published one: one minus the cosine similarity."""

import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.losses import mean_of_valid, only_valid


def cosine_distance(
    projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor, weight_BN: Tensor | None = None
) -> Tensor:
    """L_align = mean over valid tokens of 1 - cos(projected, target), in [0, 2].

    Computed in float32. Zero if and only if every valid pair is parallel (or none is valid); invariant to
    either side's scale.
    """
    projected, target = only_valid(projected_BNC, target_BNC, valid_BN)
    return mean_of_valid(1 - F.cosine_similarity(projected, target, dim=-1), valid_BN, weight_BN)


LOSS = cosine_distance
