"""Projectors from a host's visual tokens to the width of a teacher, thrown away after training.

Shapes: B batch, V views, h w rows and columns of the host's grid, N = V*h*w visual tokens, D width of the
host, C width of the teacher.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout

PROJECTORS, NORMS = ("mlp", "conv"), ("layer", "batch")


def check_norm(norm: str) -> None:
    """Raises :class:`SpatialForcingError` for a norm that a projector cannot have."""
    if norm not in NORMS:
        raise SpatialForcingError(f"The projector's norm is 'layer' or 'batch', got {norm!r}.")


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
        check_norm(norm)
        hidden = width_out if hidden is None else hidden
        if min(width_in, width_out, hidden) < 1:
            raise SpatialForcingError(
                f"The projector's widths must be at least 1, got {width_in}, {hidden} and {width_out}."
            )
        self.norm = nn.LayerNorm(width_in) if norm == "layer" else nn.BatchNorm1d(width_in)
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(
        self, visual_BND: Tensor, valid_BN: Tensor, layout: Layout | None = None, share: float = 1.0
    ) -> Tensor:
        """Projects visual_BND to projected_BNC. Invalid tokens get no gradient and have no effect.

        Args:
            layout: of the tokens; not needed.
            share: of the hidden units, the first ones, that are used: several alignments of one projector may
                use more and more of it (ROCKET, arXiv 2602.17951).
        """
        # Hosts often run in bfloat16; the projector keeps its own precision.
        x = torch.where(valid_BN[..., None], visual_BND, 0.0).to(self.fc1.weight.dtype)
        if isinstance(self.norm, nn.BatchNorm1d):
            x = x.masked_scatter(valid_BN[..., None], self._batch_norm(self.norm, x[valid_BN]))
        else:
            x = self.norm(x)
        if share == 1.0:
            return self.fc2(F.gelu(self.fc1(x)))
        used = max(1, int(share * self.fc1.out_features))
        hidden = F.gelu(F.linear(x, self.fc1.weight[:used], self.fc1.bias[:used]))
        return F.linear(hidden, self.fc2.weight[:, :used], self.fc2.bias)

    @staticmethod
    def _batch_norm(norm: nn.BatchNorm1d, x_ND: Tensor) -> Tensor:
        if norm.training and len(x_ND) < 2:
            # One valid token has no variance, none has no mean: the running statistics serve, unchanged.
            statistics = norm.running_mean, norm.running_var
            return F.batch_norm(x_ND, *statistics, norm.weight, norm.bias, eps=norm.eps)
        return norm(x_ND)


class ConvProjector(nn.Module):
    """Convolutional projector of iREPA (arXiv 2512.10794): 3 x 3, over each view's grid of tokens.

    Args:
        width_in: D, width of the host.
        width_out: C, width of the teacher.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, visual_BND: Tensor, valid_BN: Tensor, layout: Layout, share: float = 1.0) -> Tensor:
        """Projects visual_BND to projected_BNC; invalid tokens are zero to their neighbours.

        Args:
            layout: of the tokens.
            share: 1, as there are no hidden units.
        """
        x_BND = torch.where(valid_BN[..., None], visual_BND, 0.0).to(self.conv.weight.dtype)
        x_BVhwD = x_BND.unflatten(1, (-1, layout.rows, layout.cols))
        maps = self.conv(x_BVhwD.movedim(-1, 2).flatten(0, 1))
        return maps.unflatten(0, x_BVhwD.shape[:2]).movedim(2, -1).flatten(1, 3)
