"""Relational loss: compares the pairwise similarities of a sample's tokens (Gram matrices)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.losses import mean_of_valid, only_valid


def relation_distance(
    projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor, weight_BN: Tensor | None = None
) -> Tensor:
    """Mean over pairs of valid tokens of one sample of (cos(p_i, p_j) - cos(y_i, y_j))^2, in [0, 4].

    Computed in float32. Invariant to the scale of every token and to a rotation of either side as a whole, so
    that projected tokens need not become the target's, only as alike as they. Zero where no sample has two
    valid tokens. A pair of weighted tokens weighs their product. Takes memory for the pairs: the square of
    the tokens of a sample.
    """
    projected, target = only_valid(projected_BNC, target_BNC, valid_BN)
    with torch.autocast(projected.device.type, enabled=False):
        p, y = F.normalize(projected, dim=-1), F.normalize(target, dim=-1)
        square_BNN = (p @ p.mT - y @ y.mT).square()
    pair_BNN = valid_BN[:, :, None] & valid_BN[:, None, :]
    pair_BNN = pair_BNN & ~torch.eye(valid_BN.shape[1], dtype=torch.bool, device=valid_BN.device)
    weight_BNN = None if weight_BN is None else weight_BN[:, :, None] * weight_BN[:, None, :]
    return mean_of_valid(square_BNN, pair_BNN, weight_BNN)


LOSS = relation_distance
