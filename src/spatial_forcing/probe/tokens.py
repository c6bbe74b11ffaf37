"""Reads the visual tokens of a policy over many frames, and leaves the policy as it was.

Shapes: F frames, B batch, V views, H W rows and columns of tokens, N = V*H*W, D = C channels.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spatial_forcing.hosts import host_of
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.tap import Tap


@torch.no_grad()
def tapped_tokens(
    policy: nn.Module,
    batches: Iterable[dict[str, Any]],
    depth: int | None = None,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The visual tokens of a policy at the tap, for every frame of some preprocessed batches.

    Runs ``policy.predict_action_chunk(batch)`` (every LeRobot policy has it), or else ``policy(batch)``, in
    evaluation mode without gradient. Afterwards the policy is what it was: training flags, hooks, queues, and
    the random numbers it would draw next.

    Args:
        policy: anything ``host_of`` recognises.
        batches: as the policy takes them.
        depth: blocks before the tap; the host's recommendation if None.
        advance: called with the number of frames just finished.

    Returns:
        tokens_FVHWC on the host's grid, float32, on the CPU.

    Raises:
        HostError, TapError: not a host, no such depth, or the forward does not pass the tap.
        ProbeError: no batches.
    """
    host = host_of(policy)
    run = getattr(policy, "predict_action_chunk", policy)
    parts: list[Tensor] = []
    with _undisturbed(policy):
        tap = Tap(host, depth)
        try:
            for batch in batches:
                with tap.watch():
                    run(batch)
                visual_BND, layout = tap.visual_BND().to("cpu", torch.float32), tap.layout
                parts.append(visual_BND.unflatten(1, (layout.views, layout.rows, layout.cols)))
                advance(len(visual_BND))
        finally:
            tap.detach()
    if not parts:
        raise ProbeError("There were no batches to probe.")
    return torch.cat(parts)


@contextmanager
def _undisturbed(policy: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, LeRobot's queues and random numbers are as before."""
    modes = {module: module.training for module in policy.modules()}
    # Under these names LeRobot's policies keep the observations they have seen and the actions they have yet
    # to take.
    queues = {name: copy.deepcopy(vars(policy)[name]) for name in {"_queue", "_queues"} & vars(policy).keys()}
    try:
        with torch.random.fork_rng():
            policy.eval()
            yield
    finally:
        vars(policy).update(queues)
        for module, training in modes.items():
            module.training = training
