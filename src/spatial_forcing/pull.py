"""Who pulls harder at the tapped streams: the alignment or the action loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spatial_forcing.tap import Tap, TapError


def gradient_ratio(action_loss: Tensor, align_loss: Tensor, taps: Sequence[Tap]) -> Tensor:
    """|d(align) / dx| / |d(action) / dx|, x the streams of all taps together.

    Costs a backward pass from both losses down to the taps; the graph is still there afterwards.

    Returns:
        A scalar; NaN if nothing was watched, or a loss depends on no tapped stream.

    Raises:
        TapError: the host checkpoints activations with ``use_reentrant=True``, where torch refuses it.
    """
    streams = [stream for tap in taps for stream in tap.streams if stream.requires_grad]
    if not streams:
        return torch.full((), float("nan"))
    try:
        by_action = torch.autograd.grad(action_loss, streams, retain_graph=True, allow_unused=True)
        by_align = torch.autograd.grad(align_loss, streams, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise TapError(
            f"The gradient ratio of {taps[0].site.host} cannot be measured: it checkpoints activations with "
            "use_reentrant=True, where torch computes no gradient at the tap alone. Checkpoint with "
            "use_reentrant=False, or do not measure the ratio (--policy.forcing.ratio_every=0)."
        ) from error
    action, align = _norm(by_action), _norm(by_align)
    if action is None or align is None:
        return torch.full((), float("nan"))
    return align / action.clamp(min=1e-12)


def _norm(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The length of gradients together; None if there are none."""
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm() if norms else None
