"""Tap: read the visual tokens of a running model at any depth, once, with gradient, or say why not.

The obvious way, a forward hook on a transformer block, never fires in pi0, pi0.5 and SmolVLA: their loop
reaches into the blocks (``input_layernorm``, ``self_attn.q_proj``, ``mlp``) to interleave the action expert
and never *calls* one. But somebody always reads the residual stream after block k: the norm at the entry of
block k + 1, or the final norm after the last block. A pre-hook there sees the stream in every host, and
leaves it as it is.

Shapes: B batch, L sequence, N visual tokens, D width of the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout

Visual = slice | Callable[[Tensor], Tensor]


class TapError(SpatialForcingError, RuntimeError):
    """The tap could not read what it was asked to read."""


class Located(NamedTuple):
    """Where the visual tokens of one forward are.

    Attributes:
        places_BN: positions in the sequence, view by view, row by row.
        layout: the grid that they make.
    """

    places_BN: Tensor
    layout: Layout


@dataclass(frozen=True)
class Host:
    """A record of where a VLA keeps its visual tokens. Adding a host is filling in this record.

    Attributes:
        name: what to call it in messages.
        blocks: the transformer blocks, in order.
        final_norm: the module that reads the residual stream after the last block; None if nothing reads the
            visual tokens there.
        width: D, the width of the residual stream.
        layout: the visual token grid, in the host's own order; with ``locate``, what to expect of it.
        visual: where the visual tokens are in the sequence, the only host-specific code: a slice of it, or a
            function hidden_BLD -> visual_BND; None with ``locate``.
        depth: recommended tap depth, in blocks; 3/4 of the blocks if None (OpenVLA 24 of 32, pi0 12 of 18:
            the published code of arXiv 2510.12276).
        entry: the name, inside a block, of the norm that reads the block's input; "" for hosts that call
            their blocks and have no such norm (post-norm blocks), where the block itself is read.
        prompt: for hosts whose visual tokens stand wherever the prompt has them: the module that is called
            with the prompt, by keyword, before the blocks run.
        locate: the keyword arguments of that call -> :class:`Located`.
    """

    name: str
    blocks: Sequence[nn.Module] | nn.ModuleList
    final_norm: nn.Module | None
    width: int
    layout: Layout
    visual: Visual | None
    depth: int | None = None
    entry: str = "input_layernorm"
    prompt: nn.Module | None = None
    locate: Callable[[Mapping[str, Any]], Located] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.visual, slice):
            object.__setattr__(self, "visual", partial(_sliced, self.visual))
        elif not (callable(self.visual) or (self.visual is None and self.locate is not None)):
            raise SpatialForcingError(
                f"Host.visual of {self.name} is a slice of the sequence or a function hidden_BLD -> "
                f"visual_BND (None only with Host.locate), got {self.visual!r}."
            )

    def reader(self, depth: int) -> nn.Module:
        """The module that reads the residual stream after ``depth`` blocks, 1 <= depth <= len(blocks)."""
        blocks = len(self.blocks)
        deepest = blocks if self.final_norm is not None else blocks - 1
        if not isinstance(depth, Integral) or not 1 <= depth <= deepest:
            raise TapError(
                f"{self.name} has {blocks} blocks; the tap depth must be 1 to {deepest}, got {depth!r}."
            )
        if depth == blocks and self.final_norm is not None:
            return self.final_norm
        return self.entry_of(depth)

    def entry_of(self, index: int) -> nn.Module:
        """The module that reads the input of ``blocks[index]``."""
        block = self.blocks[index]
        reader = getattr(block, self.entry, None) if self.entry else block
        if not isinstance(reader, nn.Module):
            found = ", ".join(name for name, _ in block.named_children())
            raise TapError(
                f"{self.name}: block {index} ({type(block).__name__}) has no module {self.entry!r}. "
                f"It has: {found}. Name the norm at the block's entry with Host(entry=...)."
            )
        return reader

    @property
    def default_depth(self) -> int:
        return max(1, round(0.75 * len(self.blocks))) if self.depth is None else self.depth


def _sliced(where: slice, hidden_BLD: Tensor) -> Tensor:
    return hidden_BLD[:, where]


class Tap:
    """Reads the residual stream of a host after ``depth`` blocks.

    The hook is attached at construction and does nothing unless armed by :meth:`watch`. It keeps the first
    value it sees and disarms: with activation checkpointing the same module runs again during backward.

    ``torch.compile`` does not look for new hooks and reuses a graph compiled without this one: build the tap
    before the first compiled call. Blocks compiled one by one share their graphs, so for them the tap fires
    only with ``torch._dynamo.config.skip_nnmodule_hook_guards = False``, which also lifts the first
    restriction.
    """

    def __init__(self, host: Host, depth: int | None = None):
        if not isinstance(host, Host):
            raise TapError(f"A tap takes a Host, from host_of(model); got {type(host).__name__}.")
        self.host = host
        self.depth = host.default_depth if depth is None else depth
        self.armed = False
        self.hidden_BLD: Tensor | None = None
        self.located: Located | None = None
        self._handles = [host.reader(self.depth).register_forward_pre_hook(self._keep, with_kwargs=True)]
        if host.prompt is not None:
            self._handles.append(host.prompt.register_forward_pre_hook(self._locate, with_kwargs=True))

    def __getstate__(self) -> dict:
        # A copy of the host (an EMA, say) brings its own tap; the graph of a past step cannot be copied.
        return self.__dict__ | {"armed": False, "hidden_BLD": None, "located": None}

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.armed:
            self.hidden_BLD = args[0] if args else next(iter(kwargs.values()))
            self.armed = False
        # Returning None leaves the module's input as it is.

    def _locate(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.armed and self.host.locate is not None:
            self.located = self.host.locate(kwargs)

    @contextmanager
    def watch(self) -> Iterator["Tap"]:
        """Arms the tap for the forward inside the ``with`` block. Whatever it held before is forgotten."""
        self.hidden_BLD, self.located, self.armed = None, None, True
        try:
            yield self
        finally:
            self.armed = False

    @property
    def layout(self) -> Layout:
        """The grid of the watched forward's visual tokens."""
        return self.host.layout if self.located is None else self.located.layout

    def visual_of(self, stream_BLD: Tensor) -> Tensor:
        """The visual tokens of the tapped stream, or of another of its shape (its gradient, say)."""
        if callable(self.host.visual):
            return self.host.visual(stream_BLD)
        if self.located is None:
            raise TapError(
                f"The tap of {self.host.name} did not see the prompt, which says where the visual tokens "
                "are: its forward does not call the module that Host.prompt names, or torch.compile reused "
                "a graph that knows no tap (build SpatialForcing before the first compiled call)."
            )
        places_BN1 = self.located.places_BN[..., None].to(stream_BLD.device)
        return stream_BLD.gather(1, places_BN1.expand(-1, -1, stream_BLD.shape[-1]))

    def visual_BND(self) -> Tensor:
        """The visual tokens (B, N, D) of the watched forward, attached to its graph.

        Raises:
            TapError: nothing was watched, the hook never fired, or the tokens do not fit the host's layout.
        """
        where = f"after block {self.depth} of {len(self.host.blocks)} of {self.host.name}"
        if self.hidden_BLD is None:
            raise TapError(
                f"The tap {where} never fired. Run the host's forward inside `with sf.watch():`; if it did "
                "run, either its forward does not use these blocks (another model, or a host record that "
                "points at the wrong modules), or torch.compile reused a graph that knows no tap: build "
                "SpatialForcing before the first compiled call; if blocks are compiled one by one, also set "
                "torch._dynamo.config.skip_nnmodule_hook_guards = False."
            )
        visual = self.visual_of(self.hidden_BLD)
        layout = self.layout
        expected = (layout.tokens, self.host.width)
        if visual.ndim != 3 or tuple(visual.shape[1:]) != expected:
            raise TapError(
                f"The tap {where} found visual tokens of shape {tuple(visual.shape)}, expected (batch, "
                f"{expected[0]}, {expected[1]}) = (batch, {layout.views} views x {layout.rows} x "
                f"{layout.cols}, width). The tapped stream has shape {tuple(self.hidden_BLD.shape)}: check "
                "Host.layout and Host.visual."
            )
        return visual

    def require_gradient(self) -> None:
        """Raises :class:`TapError` if no gradient would flow from the tapped tokens into the host."""
        if self.hidden_BLD is not None and torch.is_grad_enabled() and not self.hidden_BLD.requires_grad:
            raise TapError(
                f"The tokens after block {self.depth} of {self.host.name} carry no gradient, so Spatial "
                "Forcing cannot act. Nothing before the tap trains: unfreeze the host's blocks up to the tap "
                "or put LoRA on them (SmolVLA: train_expert_only=False), and run the forward with gradients "
                "on."
            )

    def detach(self) -> None:
        """Removes the hook: the host is as it was. The tap cannot be used again."""
        for handle in self._handles:
            handle.remove()
        self.hidden_BLD, self.located, self.armed = None, None, False
