"""Diagnostics of an alignment in training: cosine per view, CKA of host and teacher, effective rank.

They are numbers of one batch, for curves; no gradient flows through them and they draw no random numbers of
torch's global generators. Their cost is bounded: CKA and effective rank take at most :data:`MAX_TOKENS`
tokens.

Shapes: B batch, V views, N = V*h*w visual tokens, n tokens that are compared, D width of the host, C width of
the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_TOKENS = 1024  # singular values of more take seconds on a CPU


def linear_cka(X_nD: Tensor, Y_nC: Tensor) -> Tensor:
    """Linear CKA of two representations of the same n tokens, from unbiased estimates of HSIC.

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),    K = X Xᵀ, L = Y Yᵀ
        HSIC(K, L) = (tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1ᵀK̃L̃1) / (n (n - 3))

    K̃ is K with zeros on its diagonal. CKA: Kornblith et al. 2019 (arXiv 1905.00414); the unbiased HSIC_1 of
    Song et al. 2012 in it, so that the number does not grow as tokens become fewer: Nguyen et al. 2021 (arXiv
    2010.15327). They average HSIC over minibatches; this is one minibatch.

    HSIC_1 does not change when a constant is added to all tokens, so both sides are centred, and then
    Xᵀ1 = 0, 1ᵀK̃1 = -Σ k_i, 1ᵀK̃L̃1 = Σ k_i l_i and tr(K̃L̃) = |XᵀY|² - Σ k_i l_i with k_i = |x_i|²: no n x n
    matrix is needed.

    Returns:
        A scalar in float32: 1 for the same tokens up to rotation and scale, 0 on average for independent
        ones, and then of either sign. NaN for fewer than 4 tokens, or where one side does not vary.
    """
    if len(X_nD) < 4:
        return X_nD.new_full((), float("nan"), dtype=torch.float32)
    X_nD, Y_nC = _centred(X_nD), _centred(Y_nC)
    product = _hsic(X_nD, X_nD) * _hsic(Y_nC, Y_nC)
    return _hsic(X_nD, Y_nC) / torch.where(product > 0, product, torch.nan).sqrt()


def _centred(X_nD: Tensor) -> Tensor:
    """X less its mean, scaled to a mean square of 1: in float32 the fourth powers of large activations
    would overflow."""
    X_nD = X_nD.float() - X_nD.float().mean(0)
    return X_nD / X_nD.square().sum(1).mean().sqrt()


def _hsic(X_nD: Tensor, Y_nC: Tensor) -> Tensor:
    """HSIC_1 times n (n - 3), of centred X and Y."""
    n, k_n, l_n = len(X_nD), X_nD.square().sum(1), Y_nC.square().sum(1)
    both = k_n @ l_n
    return (X_nD.T @ Y_nC).square().sum() - n / (n - 2) * both + k_n.sum() * l_n.sum() / ((n - 1) * (n - 2))


def effective_rank(X_nD: Tensor) -> Tensor:
    """Effective rank of a matrix of tokens: in how many directions they differ (Roy and Vetterli 2007).

        erank = exp(-Σ_k p_k log p_k),    p_k = σ_k / Σ_j σ_j,    σ the singular values of X

    Returns:
        A scalar in float32, 1 to min(n, D): k if k singular values are equal and the others zero. NaN for no
        tokens, if all are zero, or if one is not finite.
    """
    if 0 in X_nD.shape or not X_nD.isfinite().all():
        return X_nD.new_full((), float("nan"), dtype=torch.float32)
    sigma = torch.linalg.svdvals(X_nD.float())
    return torch.special.entr(sigma / sigma.sum()).sum().exp()


@torch.no_grad()
def compare_tokens(
    visual_BND: Tensor, projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor, views: int
) -> dict[str, Tensor]:
    """Diagnostics of one alignment on one batch, over its valid tokens.

    Args:
        visual_BND: the host's tokens at the site.
        projected_BNC: the same after the projector.
        target_BNC, valid_BN: what they are pulled toward, on the host's grid, and which tokens count.
        views: V; tokens stand view by view.

    Returns:
        Scalars in float32, NaN where no token is valid. ``cosine_view_<v>`` of each view, counted from 0, if
        there are several: the mean cosine. ``cka``: :func:`linear_cka` of visual_BND and target_BNC.
        ``effective_rank``: of visual_BND less the mean over tokens, which would count as one direction and
        outweigh the others.
    """
    with torch.autocast(visual_BND.device.type, enabled=False):
        numbers = {}
        if views > 1:
            cosine_BN = F.cosine_similarity(projected_BNC.float(), target_BNC.float(), dim=-1)
            total_V = cosine_BN.where(valid_BN, 0.0).unflatten(1, (views, -1)).sum((0, 2))
            mean_V = total_V / valid_BN.unflatten(1, (views, -1)).sum((0, 2))
            numbers = {f"cosine_view_{view}": mean for view, mean in enumerate(mean_V.unbind())}
        visual_nD, target_nC = visual_BND[valid_BN].float(), target_BNC[valid_BN]
        some = _some_of(len(visual_nD)).to(visual_nD.device)
        visual_nD, target_nC = visual_nD[some], target_nC[some]
        return numbers | {
            "cka": linear_cka(visual_nD, target_nC),
            "effective_rank": effective_rank(visual_nD - visual_nD.mean(0)),
        }


def _some_of(count: int) -> Tensor:
    """Fixed random indices of at most `MAX_TOKENS` of ``count`` tokens."""
    if count <= MAX_TOKENS:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MAX_TOKENS]
