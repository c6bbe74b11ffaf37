"""Reading a policy's visual tokens over many frames, without changing the policy.

Shapes: F frames, B batch, V views, H W rows and columns of tokens, N = V*H*W, D = C channels.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from spatial_forcing.hosts import host_of, policy_in
from spatial_forcing.hosts.lerobot import policy_host
from spatial_forcing.hosts.shown import Shown, shown
from spatial_forcing.on_grid import ImageSize
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.visual import VisualTokens
from spatial_forcing.tap import Tap


class SiteTaps:
    """Reads a policy's visual tokens at several sites in one forward, without changing the policy.

        with SiteTaps(policy, ["blocks.1", "blocks.2"]) as read:
            for batch in batches:
                tokens = read(batch)  # site -> VisualTokens

    Runs ``policy.predict_action_chunk(batch)`` (every LeRobot policy has it), or else ``policy(batch)``, in
    evaluation mode without gradient. After the ``with`` block the policy is what it was: training flags,
    hooks, queues, and the random numbers it would draw next.

    Args:
        policy: anything ``host_of`` recognises.
        sites: names of sites (``Host.site``); the host's recommendation if None.
        image_hw: height and width of the images the host is given, one pair or one for each view, for
            models that pad and are not LeRobot policies; of those the batch says.

    Raises:
        HostError, TapError: not a host, no such site.
    """

    def __init__(
        self, policy: nn.Module, sites: Sequence[str] | None = None, *, image_hw: ImageSize | None = None
    ):
        self.policy, self.host, self.inner = policy, host_of(policy), policy_in(policy)
        wanted = [self.host.site_at()] if sites is None else [self.host.site(name) for name in sites]
        self.sites = {site.name: site for site in wanted}
        self._run = getattr(policy, "predict_action_chunk", policy)
        self._image_hw = image_hw
        self._taps: dict[str, Tap] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "SiteTaps":
        with ExitStack() as undo:
            undo.enter_context(_undisturbed(self.policy))
            for name, site in self.sites.items():
                self._taps[name] = Tap(site)
                undo.callback(self._taps[name].detach)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._taps = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, VisualTokens]:
        """The tokens of a preprocessed batch on the grid of each site, float32, on the CPU, with the part of
        the image that each sees.

        Raises:
            TapError: the forward does not pass a tap.
            SpatialForcingError: the batch does not say how its images were cropped.
            ProbeError: a host that pads images of unknown size.
        """
        # Some hosts have tokens only for the cameras that are in the batch.
        seen = None if self.inner is None else shown(self.inner, batch)
        for tap in self._taps.values():
            if seen and self.host.locate is None and seen.views != tap.site.layout.views:
                tap.moved_to(policy_host(self.inner, seen.views))
        with ExitStack() as watching:
            for tap in self._taps.values():
                watching.enter_context(tap.watch())
            self._run(batch)
        return {name: _positioned(tap, seen, self._image_hw) for name, tap in self._taps.items()}


def tapped_tokens(
    policy: nn.Module,
    batches: Iterable[dict[str, Any]],
    depth: int | None = None,
    *,
    image_hw: ImageSize | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> VisualTokens:
    """The visual tokens of a policy at the tap, for every frame of some preprocessed batches.

    How the policy is run: see :class:`SiteTaps`.

    Args:
        policy: anything ``host_of`` recognises.
        batches: as the policy takes them, without image transforms.
        depth: blocks before the tap; the host's recommendation if None.
        image_hw: see :class:`SiteTaps`.
        advance: called with the number of frames just finished.

    Returns:
        The tokens on the host's grid, float32, on the CPU, with the part of the image that each sees. Views
        are the cameras that are in any batch, in the order of the policy.

    Raises:
        HostError, TapError: not a host, no such depth, or the forward does not pass the tap.
        SpatialForcingError: a batch does not say how its images were cropped.
        ProbeError: no batches, batches with different grids, or a host that pads images of unknown size.
    """
    name = host_of(policy).site_at(depth).name
    parts: list[VisualTokens] = []
    with SiteTaps(policy, [name], image_hw=image_hw) as read:
        for batch in batches:
            parts.append(read(batch)[name])
            advance(parts[-1].frames)
    if not parts:
        raise ProbeError("There were no batches to probe.")
    named = {name for part in parts for name in part.cameras or ()}
    if len({part.cameras for part in parts}) > 1 and read.inner is not None:
        cameras = [name for name in read.inner.config.image_features if name in named]
        parts = [part.of_cameras(cameras) for part in parts]
    return VisualTokens.joined(parts)


def _positioned(tap: Tap, seen: Shown | None, image_hw: ImageSize | None) -> VisualTokens:
    """The tokens of the watched forward with their positions in the images."""
    visual_BND, layout = tap.visual_BND(), tap.layout
    if seen is not None:
        return VisualTokens.laid_out(
            visual_BND,
            layout,
            seen.sizes,
            present_FV=seen.present_BV,
            affine_FV23=seen.affine_BV23,
            cameras=seen.cameras,
        )
    if image_hw is None:
        if layout.fit == "pad":
            raise ProbeError(
                f"{tap.site.host} pads its images, and what a token sees depends on their shape: pass "
                "tapped_tokens(..., image_hw=(height, width))."
            )
        image_hw = (layout.rows, layout.cols)  # a host that stretches does not care
    sizes = [image_hw] * layout.views if isinstance(image_hw[0], int) else list(image_hw)
    return VisualTokens.laid_out(visual_BND, layout, sizes)  # type: ignore[arg-type]


@contextmanager
def _undisturbed(policy: nn.Module) -> Iterator[None]:
    """Context in evaluation mode; afterwards modes, LeRobot's queues and random numbers are restored."""
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
