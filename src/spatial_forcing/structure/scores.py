"""Structure scores of patch features: local against distant similarity, and shares of token variance.

The first are those of arXiv 2512.10794, which finds over 27 encoders that the spatial structure of a target,
and not what it knows of the image as a whole, decides how much alignment with it helps (of diffusion models
there; of policies nobody has shown it). Its fourth, SRSS, needs object masks and is left out. None depends on
the scale of the features.

Shapes: F frames, V views, h w rows and columns of tokens, p = V*h*w positions, N = h*w tokens of an image, C
channels, d Manhattan distances between tokens of one image, counted in tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.diagnostics import effective_rank

FAR = 3 / 8  # of the longer side: 6 on a grid of 16 x 16, as in the code that comes with the paper


class FrameScores(NamedTuple):
    """Structure scores of every frame, the mean over its views; each (F,), float32.

    Attributes:
        local_distant_F: LDS = E[cos(x_i, x_j) | d_ij = 1] - E[cos(x_i, x_j) | d_ij >= far]: how much more
            alike neighbours are than tokens far apart. -2 to 2; 0 for white noise.
        decay_F: CDS = -slope of the line through s(d) = E[cos(x_i, x_j) | d_ij = d], d = 1 to half of the
            longer side (least squares): how fast likeness is lost, per token.
        contrast_F: RMSC = sqrt(E_i |u_i - E_j u_j|²), u_i = x_i / |x_i|: how much directions of tokens
            differ. 0 to 1.
        effective_rank_F: in how many directions the tokens of an image differ from their mean
            (:func:`spatial_forcing.diagnostics.effective_rank`), 1 to min(N - 1, C).
    """

    local_distant_F: Tensor
    decay_F: Tensor
    contrast_F: Tensor
    effective_rank_F: Tensor


def frame_scores(tokens_FVhwC: Tensor) -> FrameScores:
    """Computes the structure scores of frames from their tokens; at least 2 x 2 per image."""
    rows, cols = tokens_FVhwC.shape[2:4]
    tokens_INC = tokens_FVhwC.float().flatten(2, 3).flatten(0, 1)  # I images
    unit_INC = F.normalize(tokens_INC, dim=-1)
    similarity_Id, pairs_d = similarity_by_distance(unit_INC, rows, cols)
    far = far_distance(rows, cols)
    weights_d = pairs_d * (torch.arange(len(pairs_d)) >= far)
    distant_I = (similarity_Id * weights_d).sum(1) / weights_d.sum()
    d = torch.arange(1, max(2, max(rows, cols) // 2) + 1).float()
    slope_I = similarity_Id[:, 1 : len(d) + 1] @ (d - d.mean()) / (d - d.mean()).square().sum()
    contrast_I = (unit_INC - unit_INC.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    centred_INC = tokens_INC - tokens_INC.mean(1, keepdim=True)
    rank_I = torch.stack([effective_rank(one) for one in centred_INC])
    scores = (similarity_Id[:, 1] - distant_I, -slope_I, contrast_I, rank_I)
    return FrameScores(*(of.unflatten(0, tokens_FVhwC.shape[:2]).mean(1) for of in scores))


def far_distance(rows: int, cols: int) -> int:
    """The Manhattan distance from which on tokens count as far apart."""
    return max(2, round(FAR * max(rows, cols)))


def similarity_by_distance(unit_INC: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Mean cosine of pairs of tokens of an image by their Manhattan distance, 0 to rows + cols - 2, and the
    number of such pairs: similarity_Id, pairs_d."""
    row_N, col_N = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    )
    distance_NN = (row_N[:, None] - row_N).abs() + (col_N[:, None] - col_N).abs()
    cosine_INN = unit_INC @ unit_INC.mT
    pairs_d = torch.bincount(distance_NN.flatten())
    total_Id = torch.zeros(len(unit_INC), len(pairs_d))
    total_Id.index_add_(1, distance_NN.flatten(), cosine_INN.flatten(1))
    return total_Id / pairs_d, pairs_d


# ---- shares of variance ------------------------------------------------------------------------------------


class Likeness(NamedTuple):
    """Inner products between frames: sufficient statistics of the shares of variance, for any frame weights.

    Attributes:
        tokens_FF: E_p <x_fp, x_gp>, of tokens at the same position.
        means_FF: <E_p x_fp, E_p x_gp>, of the mean tokens of frames.
        positions: how many positions p.
        apart_FF: bool, whether two frames are of different episodes.
    """

    tokens_FF: Tensor
    means_FF: Tensor
    positions: int
    apart_FF: Tensor


def likeness(tokens_FVhwC: Tensor, episodes: Sequence[int]) -> Likeness:
    """Computes inner products between frames in float64; ``episodes`` is that of each frame. With one
    episode, each frame counts as one."""
    tokens_FpC = tokens_FVhwC.flatten(1, 3)
    frames, positions = tokens_FpC.shape[:2]
    scale = tokens_FpC.float().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    tokens_FpC = (tokens_FpC / scale).double()
    flat, mean_FC = tokens_FpC.reshape(frames, -1), tokens_FpC.mean(1)
    episode_F = torch.as_tensor(episodes if len(set(episodes)) > 1 else range(frames))
    apart_FF = episode_F[:, None] != episode_F
    return Likeness(flat @ flat.T / positions, mean_FC @ mean_FC.T, positions, apart_FF)


class Shares(NamedTuple):
    """Variance shares of tokens; each a scalar, or one for each set of weights.

    With x_fp = m + a_p + b_f + r_fp (two-way analysis of variance: a_p what tokens at a position have in
    common in all frames, b_f what those of a frame have in common, r_fp the rest) and T = E|x_fp - m|²:

    Attributes:
        common: |m|² / E|x_fp|²: the mean token, which a cosine rewards though it says nothing.
        position: E|a_p|² / T: what the place of a token alone says, which a target without content has, too.
        frame: E|b_f|² / T: what all tokens of a frame share: light, scene, the image as a whole.
        content: E|r_fp|² / T = 1 - position - frame: what is where in this frame.
    """

    common: Tensor
    position: Tensor
    frame: Tensor
    content: Tensor


def shares(of: Likeness, weights_RF: Tensor) -> Shares:
    """Computes the variance shares for every row of frame weights, which sum to 1.

    What is in common is measured between frames of different episodes, |m|² as E <E_p x_fp, E_p x_gp> and
    |m|² + E|a_p|² as E <x_fp, x_gp>: frames of one episode are alike for other reasons, and with few
    episodes, or in a resample that has one twice, their mean would seem to say more than it does. From E|b|²
    the part that a mean over p positions has by chance, E|r|² / (p - 1), is taken off.
    """
    weights_RF, apart_FF = weights_RF.double(), of.apart_FF.double()

    def between(products_FF: Tensor) -> Tensor:
        pairs_R = ((weights_RF @ apart_FF) * weights_RF).sum(1)
        return ((weights_RF @ (products_FF * apart_FF)) * weights_RF).sum(1) / pairs_R

    m2, square = between(of.means_FF).clamp(min=0), weights_RF @ of.tokens_FF.diagonal()
    total = square - m2
    total = torch.where(total > 1e-9 * square, total, torch.nan)
    a2 = (between(of.tokens_FF) - m2).clamp(min=0)
    b2 = weights_RF @ of.means_FF.diagonal() - m2
    b2 = (b2 - (total - a2 - b2) / (of.positions - 1)).clamp(min=0)
    return Shares(m2 / square, a2 / total, b2 / total, 1 - (a2 + b2) / total)
