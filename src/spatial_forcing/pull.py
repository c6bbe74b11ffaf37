"""Gradients of alignment and action loss compared at the tapped streams: norm ratio and cosine."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spatial_forcing.mixture import MixedTap
from spatial_forcing.tap import Tap, TapError


class Pull(NamedTuple):
    """Norm ratio and cosine of two gradients, g of the action loss and h of the alignment loss; scalars.

    Attributes:
        ratio: |h| / |g|, at all tokens of the streams.
        cosine: g·h / (|g| |h|) at the visual tokens, -1 to 1: below 0 a small step down the alignment loss
            is one up the action loss.
    """

    ratio: Tensor
    cosine: Tensor


def pull(action_loss: Tensor, align_loss: Tensor, taps: Sequence[Tap | MixedTap]) -> Pull:
    """Compares g = d(action) / dx and h = d(align) / dx, x the streams of all taps together.

    The cosine is that of all gradients as one vector, as between tasks in Yu et al. 2020 (arXiv 2001.06782),
    here at the tap and not at the parameters.

    Costs a backward pass from both losses down to the taps; the graph is still there afterwards.

    Returns:
        NaN in both if nothing was watched, or a loss depends on no tapped stream; in the cosine also if a
        gradient is zero.

    Raises:
        TapError: the host checkpoints activations with ``use_reentrant=True``, where torch refuses it.
    """
    watched = [tap for tap in taps if any(stream.requires_grad for stream in tap.streams)]
    nothing = Pull(*(torch.full((), float("nan")) for _ in range(2)))
    if not watched:
        return nothing
    try:
        by_action = _gradients(action_loss, watched)
        by_align = _gradients(align_loss, watched)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise TapError(
            f"The gradients at the tap of {taps[0].site.host} cannot be measured: it checkpoints activations "
            "with use_reentrant=True, where torch computes no gradient at the tap alone. Checkpoint with "
            "use_reentrant=False."
        ) from error
    if by_action is None or by_align is None:
        return nothing
    g, h = (_visual(gradients, watched) for gradients in (by_action, by_align))
    cosine = (g @ h) / (g.norm() * h.norm())
    return Pull(_norm(by_align) / _norm(by_action).clamp(min=1e-12), cosine)


def _gradients(loss: Tensor, taps: Sequence[Tap | MixedTap]) -> list[list[Tensor]] | None:
    """Gradients of a loss at the streams of each tap, zero where it does not depend on one; None if it
    depends on none."""
    streams = [stream for tap in taps for stream in tap.streams]
    trained = [stream for stream in streams if stream.requires_grad]
    found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        return None
    by_stream = {id(stream): gradient for stream, gradient in zip(trained, found, strict=True)}
    return [
        [torch.zeros_like(s) if (g := by_stream.get(id(s))) is None else g for s in tap.streams]
        for tap in taps
    ]


def _visual(gradients: Sequence[Sequence[Tensor]], taps: Sequence[Tap | MixedTap]) -> Tensor:
    """Gradients at the visual tokens of all taps, as one vector."""
    pairs = zip(taps, gradients, strict=True)
    return torch.cat([tap.visual_of(*of_tap).float().flatten() for tap, of_tap in pairs])


def _norm(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """Norm of all gradients together."""
    norms = [gradient.float().norm() for of_tap in gradients for gradient in of_tap]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()
