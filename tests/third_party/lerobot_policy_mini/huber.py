"""A loss: the Huber distance of unit vectors, which is less impressed by tokens that are far off.

Shapes: B batch, N visual tokens, C channels.
"""

import torch.nn.functional as F
from torch import Tensor

DELTA = 0.05


def huber(projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean over valid tokens and channels of the Huber distance of unit vectors; 0 if no token is valid."""
    sides = [of.float().where(valid_BN[..., None], 1.0) for of in (projected_BNC, target_BNC)]
    projected, target = (F.normalize(side, dim=-1) for side in sides)
    distance_BN = F.huber_loss(projected, target, reduction="none", delta=DELTA).mean(-1) / DELTA
    return distance_BN.where(valid_BN, 0.0).sum() / valid_BN.sum().clamp(min=1)
