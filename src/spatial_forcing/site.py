"""Host and Site: records of a model's visual tokens, and of a place in the model where they are read.

A site has a name: ``"blocks.12"`` is the residual stream after 12 blocks, which is the input of block 12 and,
after the last, that of the final norm; ``"vision.-1"`` is the output of the last block of the vision encoder,
before its final norm. ``"blocks.0"`` is what enters the first block.

Shapes: B batch, V views, L sequence, N visual tokens, D width of the stream, n tokens of a view.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout

Visual = slice | Callable[[Tensor], Tensor]
Blocks = Sequence[nn.Module] | nn.ModuleList

_NAME = re.compile(r"(\w+)\.(-?\d+)")


class TapError(SpatialForcingError, RuntimeError):
    """Visual tokens cannot be read at a site."""


class Located(NamedTuple):
    """Positions of the visual tokens in one forward.

    Attributes:
        token_indices_BN: positions in the sequence, view by view, row by row.
        layout: the grid that they make.
    """

    token_indices_BN: Tensor
    layout: Layout


@dataclass(frozen=True)
class VisionEncoder:
    """Record of a host's vision encoder, so that visual tokens can be read there, too.

    Attributes:
        blocks: the transformer blocks, in order.
        final_norm: the module that reads the stream after the last block; None if nothing does.
        width: D, the width of its stream.
        layout: the grid of its own tokens, of as many views as the host has: often finer than the host's.
        visual: where the tokens of the grid are in the sequence of one image, a slice or a function
            tokens_bLD -> tokens_bnD; all of it, if None.
        calls: ``"once"`` if all views go through it in one call, with B * V images, those of a sample
            together; ``"per view"`` if it is called once for every view, with B images (SmolVLA, pi0).
        entry: the name, inside a block, of the norm that reads the block's input.
        upstream: what makes its tokens before the first block.
        unfreeze: the flags that make it train, for messages.
    """

    blocks: Blocks
    final_norm: nn.Module | None
    width: int
    layout: Layout
    visual: Visual | None = None
    calls: Literal["once", "per view"] = "once"
    entry: str = "layer_norm1"
    upstream: Sequence[nn.Module] = ()
    unfreeze: str = ""


@dataclass(frozen=True)
class Site:
    """A site of a host: a place in the model where its visual tokens are read.

    Attributes:
        name: ``"blocks.12"``, ``"vision.24"``; counted from the front.
        host: the host's name, for messages.
        label: the same in words, for messages.
        layer: how many blocks come before it.
        reader: the module whose input is the stream there.
        width: D, the width of the stream.
        layout: the grid of the visual tokens there; with ``locate``, what to expect of it.
        visual: hidden_BLD -> visual_BND; None with ``locate``.
        before: the blocks, and what else is known, that shape the tokens.
        beside: a module that works where the stream does.
        calls: how often the reader is called in one forward, each time with the images of one view.
        prompt, locate: as of the :class:`Host`.
    """

    name: str
    host: str
    label: str
    layer: int
    reader: nn.Module
    width: int
    layout: Layout
    visual: Callable[[Tensor], Tensor] | None
    before: tuple[nn.Module, ...]
    beside: nn.Module
    calls: int = 1
    prompt: nn.Module | None = None
    locate: Callable[[Mapping[str, Any]], Located] | None = None

    @property
    def where(self) -> str:
        """Label of the site and the host's name, for messages."""
        return f"{self.label} of {self.host}"

    @property
    def in_vision(self) -> bool:
        """Whether it is in the vision encoder."""
        return self.name.startswith("vision.")

    @property
    def device(self) -> torch.device:
        """Device of the stream."""
        parameter = next(self.beside.parameters(), None)
        return torch.get_default_device() if parameter is None else parameter.device

    @property
    def record(self) -> str:
        """The fields of the host record to check if the tokens do not fit, for messages."""
        return "Host.vision" if self.in_vision else "Host.layout and Host.visual"


@dataclass(frozen=True)
class Host:
    """Record of a host model (VLA): where its visual tokens are. Adding a host is filling in this record.

    Attributes:
        name: what to call it in messages.
        blocks: the transformer blocks, in order.
        final_norm: the module that reads the residual stream after the last block; None if nothing reads the
            visual tokens there.
        width: D, the width of the residual stream.
        layout: the visual token grid, in the host's own order; with ``locate``, what to expect of it.
        visual: where the visual tokens are in the sequence, the only host-specific code: a slice of it, or a
            function hidden_BLD -> visual_BND; None with ``locate``.
        layer: the layer recommended for reading, the number of blocks before it; 3/4 of the blocks if None
            (OpenVLA 24 of 32, pi0 12 of 18: the published code of arXiv 2510.12276).
        entry: the name, inside a block, of the norm that reads the block's input; "" for hosts that call
            their blocks and have no such norm (post-norm blocks), where the block itself is read.
        prompt: for hosts whose visual tokens stand wherever the prompt has them: the module that is called
            with the prompt, by keyword, before the blocks run.
        locate: the keyword arguments of that call -> :class:`Located`.
        vision: its vision encoder, for sites ``"vision.K"``; None if nothing is said of it.
    """

    name: str
    blocks: Blocks
    final_norm: nn.Module | None
    width: int
    layout: Layout
    visual: Visual | None
    layer: int | None = None
    entry: str = "input_layernorm"
    prompt: nn.Module | None = None
    locate: Callable[[Mapping[str, Any]], Located] | None = None
    vision: VisionEncoder | None = None

    def __post_init__(self) -> None:
        if isinstance(self.visual, slice):
            object.__setattr__(self, "visual", partial(_sliced, self.visual))
        elif not (callable(self.visual) or (self.visual is None and self.locate is not None)):
            raise SpatialForcingError(
                f"Host.visual of {self.name} is a slice of the sequence or a function hidden_BLD -> "
                f"visual_BND (None only with Host.locate), got {self.visual!r}."
            )

    def one_token_late(self) -> "Host":
        """The same host read one token late: each visual token is taken for the one before it.

        The public code of arXiv 2510.12276 reads OpenVLA-OFT so (``gain_feat_1move``); with proprioception
        the last "visual" token is then that of the state.
        """
        visual = self.visual
        assert callable(visual), "only hosts with their tokens in one place are read late"
        return replace(self, visual=lambda hidden_BLD: visual(hidden_BLD[:, 1:]))

    @property
    def default_layer(self) -> int:
        """Recommended layer for reading: the number of blocks before it."""
        return max(1, round(0.75 * len(self.blocks))) if self.layer is None else self.layer

    def site_at(self, layer: int | None = None) -> Site:
        """The site after ``layer`` blocks, 1 or more; the recommended one if None.

        Raises:
            TapError: no such layer.
        """
        layer = self.default_layer if layer is None else layer
        self.reader(layer)  # says what is wrong
        return self.site(f"blocks.{int(layer)}")

    def site(self, name: str) -> Site:
        """The site of a name: ``"blocks.K"`` after K blocks, ``"vision.K"`` after K blocks of the vision
        encoder, K from 0; -1 is after the last block, -2 before it.

        Raises:
            TapError: there is no such site; says which there are.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or match[1] not in ("blocks", "vision"):
            raise TapError(f"{self.name} has no site {name!r}. {self._says_sites()}")
        stack, vision = match[1], self.vision
        if stack == "vision" and vision is None:
            raise TapError(
                f"The record of {self.name} does not describe its vision encoder, so there is no site "
                f"{name!r}. {self._says_sites()} To read the vision encoder fill in Host.vision with a "
                "spatial_forcing.VisionEncoder."
            )
        of = self if stack == "blocks" or vision is None else vision
        count, index = len(of.blocks), int(match[2])
        layer = index + count + 1 if index < 0 else index
        if not 0 <= layer <= _deepest(of):
            raise TapError(f"{self.name} has no site {name!r}. {self._says_sites()}")
        label = f"after block {layer} of {count}" if layer else f"before block 1 of {count}"
        common: dict[str, Any] = {
            "name": f"{stack}.{layer}",
            "host": self.name,
            "layer": layer,
            "reader": self._reads(stack, of, layer),
            "width": of.width,
            "layout": of.layout,
            "beside": of.blocks[max(0, layer - 1)],
        }
        before = tuple(of.blocks[i] for i in range(layer))
        if isinstance(of, VisionEncoder):
            return Site(
                label=f"{label} of the vision encoder",
                visual=partial(_of_images, of.visual, of.layout.views, of.calls),
                before=(*of.upstream, *before),
                calls=of.layout.views if of.calls == "per view" else 1,
                **common,
            )
        assert not isinstance(self.visual, slice)  # it is a function since __post_init__
        hidden = {"visual": self.visual, "prompt": self.prompt, "locate": self.locate}
        return Site(label=label, before=before, **hidden, **common)

    def reader(self, layer: int) -> nn.Module:
        """The module that reads the residual stream after ``layer`` blocks, 1 <= layer <= len(blocks)."""
        deepest = _deepest(self)
        if not isinstance(layer, Integral) or not 1 <= layer <= deepest:
            raise TapError(
                f"{self.name} has {len(self.blocks)} blocks; the layer must be 1 to {deepest}, got {layer!r}."
            )
        return self._reads("blocks", self, layer)

    def _reads(self, stack: str, of: "Host | VisionEncoder", layer: int) -> nn.Module:
        if layer == len(of.blocks) and of.final_norm is not None:
            return of.final_norm
        return self._entry(stack, of, layer)

    def _entry(self, stack: str, of: "Host | VisionEncoder", index: int) -> nn.Module:
        block = of.blocks[index]
        reader = getattr(block, of.entry, None) if of.entry else block
        if not isinstance(reader, nn.Module):
            found = ", ".join(name for name, _ in block.named_children())
            said = "Host(entry=...)" if stack == "blocks" else "VisionEncoder(entry=...)"
            of_it = "" if stack == "blocks" else " of the vision encoder"
            raise TapError(
                f"{self.name}: block {index}{of_it} ({type(block).__name__}) has no module {of.entry!r}. "
                f"It has: {found}. Name the norm at the block's entry with {said}."
            )
        return reader

    def _says_sites(self) -> str:
        there = [f"blocks.0 to blocks.{_deepest(self)}"]
        if self.vision is not None:
            there.append(f"vision.0 to vision.{_deepest(self.vision)}")
        return f"It has {', and '.join(there)}; -1 is after the last block."


def _deepest(of: Host | VisionEncoder) -> int:
    """The last layer at which a module reads the stream."""
    return len(of.blocks) if of.final_norm is not None else len(of.blocks) - 1


def _sliced(where: slice, hidden_BLD: Tensor) -> Tensor:
    return hidden_BLD[:, where]


def _of_images(visual: Visual | None, views: int, calls: str, tokens_bLD: Tensor) -> Tensor:
    """Selects visual_BND from the tokens of a batch's images, those of one view (then N is n) or of all."""
    if visual is not None:
        tokens_bLD = tokens_bLD[:, visual] if isinstance(visual, slice) else visual(tokens_bLD)
    if calls == "per view" or tokens_bLD.ndim != 3 or len(tokens_bLD) % views:
        return tokens_bLD
    return tokens_bLD.unflatten(0, (-1, views)).flatten(1, 2)
