"""Projector from a host's visual tokens to the width of a teacher, thrown away after training.

Shapes: B batch, N visual tokens, D width of the host, C width of the teacher.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError


class Projector(nn.Module):
    """Projector P, a two-layer MLP: norm -> Linear(D, hidden) -> GELU -> Linear(hidden, C).

    Args:
        width_in: D, width of the host.
        width_out: C, width of the teacher.
        norm: ``"layer"`` as in the published code (default), ``"batch"`` as in the paper (statistics over the
            valid tokens).
        hidden: width between the two layers; C, as published, if None.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        norm: Literal["layer", "batch"] = "layer",
        hidden: int | None = None,
    ):
        super().__init__()
        if norm not in ("layer", "batch"):
            raise SpatialForcingError(f"The projector's norm is 'layer' or 'batch', got {norm!r}.")
        hidden = width_out if hidden is None else hidden
        if min(width_in, width_out, hidden) < 1:
            raise SpatialForcingError(
                f"The projector's widths must be at least 1, got {width_in}, {hidden} and {width_out}."
            )
        self.norm = nn.LayerNorm(width_in) if norm == "layer" else nn.BatchNorm1d(width_in)
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, visual_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """Projects visual_BND to projected_BNC. Invalid tokens get no gradient and have no effect."""
        # Hosts often run in bfloat16; the projector keeps its own precision.
        x = torch.where(valid_BN[..., None], visual_BND, 0.0).to(self.fc1.weight.dtype)
        if isinstance(self.norm, nn.BatchNorm1d):
            x = x.masked_scatter(valid_BN[..., None], self._batch_norm(self.norm, x[valid_BN]))
        else:
            x = self.norm(x)
        return self.fc2(F.gelu(self.fc1(x)))

    @staticmethod
    def _batch_norm(norm: nn.BatchNorm1d, x_ND: Tensor) -> Tensor:
        if norm.training and len(x_ND) < 2:
            # One valid token has no variance, none has no mean: the running statistics serve, unchanged.
            statistics = norm.running_mean, norm.running_var
            return F.batch_norm(x_ND, *statistics, norm.weight, norm.bias, eps=norm.eps)
        return norm(x_ND)
