"""Learned mixture of layers: one alignment of a weighted mean of the tokens at several sites.

The weights are a softmax of one learned number for each site, which trains with the projector (the adaptive
variant in the ablation of arXiv 2510.12276, where a mean over the layers replaces the choice of one).

Shapes: B batch, N visual tokens, D width of a stream, K sites.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.site import Host, Site
from spatial_forcing.tap import Tap, TapError

_SEVERAL = re.compile(r"(blocks|vision)\.(-?\d+(?:\+-?\d+)+)")


def sites_named(host: Host, name: str) -> list[Site]:
    """The sites of a name: one, or those of a mixture, ``"blocks.6+12+18"``.

    Raises:
        TapError: there is no such site, or a site is named twice.
    """
    match = _SEVERAL.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return [host.site(name)]
    sites = [host.site(f"{match[1]}.{layer}") for layer in match[2].split("+")]
    if len({site.name for site in sites}) < len(sites):
        raise TapError(f"The mixture {name!r} of {host.name} names a site twice.")
    return sites


def tap_at(sites: list[Site]) -> "Tap | MixedTap":
    """A tap at a site, or at several together."""
    return Tap(sites[0]) if len(sites) == 1 else MixedTap(sites)


def name_of(sites: list[Site]) -> str:
    """The name of a site, or of a mixture, counted from the front."""
    stack = sites[0].name.partition(".")[0]
    return f"{stack}.{'+'.join(str(site.layer) for site in sites)}"


class MixedTap:
    """Tap at several sites of one stack: their visual tokens side by side, visual_BN(KD).

    Args:
        sites: of one width and one grid.

    Attributes:
        taps: one for each site.
        site: the last of them, with the names of all and K times the width.
    """

    def __init__(self, sites: list[Site]):
        self.taps = [Tap(site) for site in sites]
        self._set_site()

    def _set_site(self) -> None:
        sites = [tap.site for tap in self.taps]
        last = max(sites, key=lambda site: site.layer)
        layers = ", ".join(str(site.layer) for site in sites)
        self.site = replace(
            last, name=name_of(sites), label=f"after blocks {layers}", width=len(sites) * last.width
        )

    @property
    def layers(self) -> int:
        """K."""
        return len(self.taps)

    @property
    def streams(self) -> list[Tensor]:
        return [stream for tap in self.taps for stream in tap.streams]

    @property
    def hidden_BLD(self) -> Tensor | None:
        """The stream at the last site."""
        return self.taps[-1].hidden_BLD

    @property
    def layout(self) -> Layout:
        return self.taps[-1].layout

    @property
    def layer(self) -> int:
        return self.site.layer

    @contextmanager
    def watch(self) -> Iterator["MixedTap"]:
        """Arms all taps for the forward inside the ``with`` block."""
        with ExitStack() as stack:
            for tap in self.taps:
                stack.enter_context(tap.watch())
            yield self

    def moved_to(self, host: Host) -> None:
        """Moves all taps to the sites of the same names in another record of the same modules."""
        for tap in self.taps:
            tap.moved_to(host)
        self._set_site()

    def visual_of(self, *streams: Tensor) -> Tensor:
        """Selects the visual tokens of the tapped streams, or of others of their shapes, side by side."""
        left, found = list(streams), []
        for tap in self.taps:
            count = len(tap.streams) or tap.site.calls
            found.append(tap.visual_of(*left[:count]))
            left = left[count:]
        return torch.cat(found, dim=-1)

    def visual_BND(self) -> Tensor:
        """The visual tokens of the watched forward, those of all sites side by side.

        Raises:
            TapError: see ``Tap.visual_BND``.
        """
        return torch.cat([tap.visual_BND() for tap in self.taps], dim=-1)

    def require_gradient(self) -> None:
        """Raises :class:`TapError` if no gradient would flow from the deepest of the sites into the host."""
        max(self.taps, key=lambda tap: tap.site.layer).require_gradient()

    def detach(self) -> None:
        """Removes the hooks."""
        for tap in self.taps:
            tap.detach()


class MixedProjector(nn.Module):
    """Projector of a learned mean of the tokens at K sites: P(sum_k softmax(a)_k x_k).

    Args:
        projector: P, of one site's width.
        layers: K.

    Attributes:
        a_K: starts at zero, so that all sites weigh alike.
    """

    def __init__(self, projector: nn.Module, layers: int):
        super().__init__()
        self.projector = projector
        self.a_K = nn.Parameter(torch.zeros(layers))

    def forward(self, visual_BND: Tensor, valid_BN: Tensor, layout: Layout, share: float = 1.0) -> Tensor:
        """Projects visual_BN(KD), the tokens of all sites side by side, to projected_BNC."""
        # What is not valid may hold anything, which a weight would not take away.
        x_BNKD = torch.where(valid_BN[..., None], visual_BND, 0.0).unflatten(-1, (len(self.a_K), -1))
        mixed_BND = (self.a_K.softmax(0)[:, None] * x_BNKD).sum(2)
        return self.projector(mixed_BND, valid_BN, layout, share)
