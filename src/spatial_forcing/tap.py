"""Tap: reads the visual tokens of a running model at any site, once, with gradient.

The obvious way, a forward hook on a transformer block, never fires in pi0, pi0.5 and SmolVLA: their loop
reaches into the blocks (``input_layernorm``, ``self_attn.q_proj``, ``mlp``) to interleave the action expert
and never *calls* one. But somebody always reads the residual stream after block k: the norm at the entry of
block k + 1, or the final norm after the last block. A pre-hook there sees the stream in every host, and
leaves it as it is. Where that is, ``site.py`` says.

Shapes: B batch, L sequence, N visual tokens, D width of the stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.site import Host, Located, Site, TapError, VisionEncoder, Visual

__all__ = ["Host", "Located", "Site", "Tap", "TapError", "VisionEncoder", "Visual"]


class Tap:
    """Hook that reads the stream of a host at one site.

    The hook is attached at construction and does nothing unless armed by :meth:`watch`. It keeps the first
    value it sees (of a vision encoder that is called once per view, the first of every view) and disarms:
    with activation checkpointing the same module runs again during backward.

    ``torch.compile`` does not look for new hooks and reuses a graph compiled without this one: build the tap
    before the first compiled call. Blocks compiled one by one share their graphs, so for them the tap fires
    only with ``torch._dynamo.config.skip_nnmodule_hook_guards = False``, which also lifts the first
    restriction.

    Args:
        at: a site, ``host.site("blocks.12")``; or a host, read after ``layer`` blocks.
        layer: with a host: 1 or more, the host's recommended layer if None.

    Attributes:
        site: where it reads.
        streams: what was read in the watched forward: one tensor, or one for every view.
    """

    def __init__(self, at: Site | Host, layer: int | None = None):
        if isinstance(at, Host):
            at = at.site_at(layer)
        elif not isinstance(at, Site):
            raise TapError(
                f"A tap takes a Host, from host_of(model), or a Site, from host.site(name); got "
                f"{type(at).__name__}."
            )
        elif layer is not None:
            raise TapError(f"The site {at.name} says where to read; give no layer with it.")
        self.site = at
        self.armed = False
        self.streams: list[Tensor] = []
        self.located: Located | None = None
        self._handles = [at.reader.register_forward_pre_hook(self._keep, with_kwargs=True)]
        if at.prompt is not None:
            self._handles.append(at.prompt.register_forward_pre_hook(self._locate, with_kwargs=True))

    def __getstate__(self) -> dict:
        # A copy of the host (an EMA, say) brings its own tap; the graph of a past step cannot be copied.
        return self.__dict__ | {"armed": False, "streams": [], "located": None}

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.armed:
            self.streams = [*self.streams, args[0] if args else next(iter(kwargs.values()))]
            self.armed = len(self.streams) < self.site.calls
        # Returning None leaves the module's input as it is.

    def _locate(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.armed and self.site.locate is not None:
            self.located = self.site.locate(kwargs)

    @contextmanager
    def watch(self) -> Iterator["Tap"]:
        """Arms the tap for the forward inside the ``with`` block. Whatever it held before is forgotten."""
        self.streams, self.located, self.armed = [], None, True
        try:
            yield self
        finally:
            self.armed = False

    @property
    def layer(self) -> int:
        """Number of blocks before the site."""
        return self.site.layer

    @property
    def hidden_BLD(self) -> Tensor | None:
        """The stream of the watched forward, of the first view if there is one for each; None before."""
        return self.streams[0] if self.streams else None

    @property
    def layout(self) -> Layout:
        """The grid of the watched forward's visual tokens."""
        return self.site.layout if self.located is None else self.located.layout

    def moved_to(self, host: Host) -> None:
        """Moves the tap to the site of the same name in another record of the same modules, with another
        number of views."""
        self.site = host.site(self.site.name)

    def visual_of(self, *streams: Tensor) -> Tensor:
        """Selects the visual tokens of the tapped stream, or of others of its shape (e.g. its gradient)."""
        if self.site.visual is not None:
            visual = [self.site.visual(stream_BLD) for stream_BLD in streams]
            return visual[0] if len(visual) == 1 else torch.cat(visual, dim=1)
        if self.located is None:
            raise TapError(
                f"The tap of {self.site.host} did not see the prompt, which says where the visual tokens "
                "are: its forward does not call the module that Host.prompt names, or torch.compile reused "
                "a graph that knows no tap (build SpatialForcing before the first compiled call)."
            )
        (stream_BLD,) = streams
        indices_BN1 = self.located.token_indices_BN[..., None].to(stream_BLD.device)
        return stream_BLD.gather(1, indices_BN1.expand(-1, -1, stream_BLD.shape[-1]))

    def visual_BND(self) -> Tensor:
        """The visual tokens (B, N, D) of the watched forward, attached to its graph.

        Raises:
            TapError: nothing was watched, the hook never fired or not for every view, or the tokens do not
                fit the layout of the site.
        """
        site, layout = self.site, self.layout
        if not self.streams:
            raise TapError(
                f"The tap {site.where} never fired. Run the host's forward inside `with sf.watch():`; if it "
                "did run, either its forward does not use these blocks (another model, or a host record that "
                "points at the wrong modules), or torch.compile reused a graph that knows no tap: build "
                "SpatialForcing before the first compiled call; if blocks are compiled one by one, also set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False."
            )
        if len(self.streams) < site.calls:
            raise TapError(
                f"The tap {site.where} fired {len(self.streams)} times, expected once for each of "
                f"{site.calls} views: check the views of Host.vision.layout, and VisionEncoder.calls."
            )
        visual = self.visual_of(*self.streams)
        expected = (layout.tokens, site.width)
        if visual.ndim != 3 or tuple(visual.shape[1:]) != expected:
            raise TapError(
                f"The tap {site.where} found visual tokens of shape {tuple(visual.shape)}, expected (batch, "
                f"{expected[0]}, {expected[1]}) = (batch, {layout.views} views x {layout.rows} x "
                f"{layout.cols}, width). The tapped stream has shape {tuple(self.streams[0].shape)}: check "
                f"{site.record}."
            )
        return visual

    def require_gradient(self) -> None:
        """Raises :class:`TapError` if no gradient would flow from the tapped tokens into the host."""
        if not self.streams or not torch.is_grad_enabled() or any(s.requires_grad for s in self.streams):
            return
        what = "vision encoder" if self.site.in_vision else "blocks"
        raise TapError(
            f"The tokens {self.site.where} carry no gradient, so Spatial Forcing cannot act. Nothing before "
            f"the tap trains: unfreeze the host's {what} up to the tap or put LoRA on them (SmolVLA: "
            "train_expert_only=False), and run the forward with gradients on."
        )

    def detach(self) -> None:
        """Removes the hook: the host is as it was. The tap cannot be used again."""
        for handle in self._handles:
            handle.remove()
        self.streams, self.located, self.armed = [], None, False
