"""Hosts: recognise a model and find the record of where its visual tokens are."""

from dataclasses import replace
from typing import Any

from torch import nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout
from spatial_forcing.hosts.lerobot import policy_host, record_of
from spatial_forcing.hosts.record import PolicyRecord, SmallPolicy
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.tap import Host, Visual

__all__ = ["RECORDS", "HostError", "PolicyRecord", "SmallPolicy", "host_of", "policy_in"]


class HostError(SpatialForcingError, TypeError):
    """A model was not recognised, or its host record needs more information."""


def host_of(
    model: nn.Module, *, layout: Layout | None = None, visual: Visual | None = None, layer: int | None = None
) -> Host:
    """Finds the host record of a model.

    Recognised are LeRobot's policies that have a record (``hosts.RECORDS``), models with a method
    ``spatial_forcing_host() -> Host`` (the built-in VLA has one; give yours one and it is a host) and Hugging
    Face decoders (Llama, Gemma, Qwen2 and all that keep ``layers``
    with an ``input_layernorm`` beside a final ``norm``), alone or inside a larger model. Wrappers (DDP,
    ``torch.compile``, LeRobot policies) are looked through. What is given goes before what the model says.

    Args:
        model: the policy, or its language model.
        layout: the visual token grid; needed for plain decoders, which do not know theirs.
        visual: where the visual tokens are in the sequence: a slice, or a function hidden_BLD -> visual_BND.
        layer: the layer recommended for reading, in blocks before it; 3/4 of the blocks if None.

    Raises:
        HostError: not recognised, several decoders found, or layout and visual are missing; says what was
            found.
    """
    if not isinstance(model, nn.Module):
        raise HostError(f"host_of takes a model, a torch.nn.Module; got {type(model).__name__}.")
    if layout is not None and not isinstance(layout, Layout):
        raise HostError(f"layout is a spatial_forcing.Layout; got {type(layout).__name__}.")
    if visual is not None and not (isinstance(visual, slice) or callable(visual)):
        raise HostError(f"visual is a slice or a function hidden_BLD -> visual_BND; got {visual!r}.")
    given = {"layout": layout, "visual": visual, "layer": layer}
    given = {field: value for field, value in given.items() if value is not None}
    if visual is not None:  # then nobody has to look for the tokens in the prompt
        given |= {"prompt": None, "locate": None}
    for inner in _unwrapped(model):
        if record_of(inner) is not None:
            return replace(policy_host(inner), **given)
        describe = getattr(inner, "spatial_forcing_host", None)
        if callable(describe):
            host = describe()
            if not isinstance(host, Host):
                raise HostError(
                    f"{type(inner).__name__}.spatial_forcing_host() must return a spatial_forcing.Host, got "
                    f"{type(host).__name__}."
                )
            return replace(host, **given)
    return _decoder_host(model, layout, visual, layer)


def policy_in(model: nn.Module) -> Any | None:
    """The LeRobot policy that has a record in a model, looking through wrappers; None if there is none."""
    return next((inner for inner in _unwrapped(model) if record_of(inner) is not None), None)


def _unwrapped(model: nn.Module) -> list[nn.Module]:
    """The model and the models inside its wrappers, outermost first."""
    chain = [model]
    for name in ("_orig_mod", "module", "base_model", "model"):
        inner = getattr(chain[-1], name, None)
        # transformers' models are their own `base_model`.
        if isinstance(inner, nn.Module) and inner is not chain[-1]:
            chain += _unwrapped(inner)
            break
    return chain


def _decoder_host(model: nn.Module, layout: Layout | None, visual: Visual | None, layer: int | None) -> Host:
    found = {
        name or "the model itself": module for name, module in model.named_modules() if _is_decoder(module)
    }
    kind = type(model).__name__
    if not found:
        children = (
            ", ".join(f"{n} ({type(m).__name__})" for n, m in model.named_children()) or "no submodules"
        )
        raise HostError(
            f"{kind} is not a host I know: it has no method spatial_forcing_host(), and no part of it keeps "
            f"`layers` with an `input_layernorm` beside a final `norm`. It has: {children}. Fill in a "
            "spatial_forcing.Host record yourself."
        )
    if len(found) > 1:
        raise HostError(
            f"{kind} holds {len(found)} decoders: {', '.join(found)}. Pass the one that reads the images, "
            "for example host_of(model.language_model, layout=..., visual=...)."
        )
    ((_, decoder),) = found.items()
    blocks, norm = decoder.get_submodule("layers"), decoder.get_submodule("norm")
    assert isinstance(blocks, nn.ModuleList)
    if layout is None or visual is None:
        raise HostError(
            f"{type(decoder).__name__} was recognised ({len(blocks)} blocks), but a plain decoder does not "
            "know where its visual tokens are. Say it: "
            "host_of(model, layout=Layout(views=2, rows=16, cols=16), visual=slice(1, 513))."
        )
    width = (
        getattr(getattr(decoder, "config", None), "hidden_size", None)
        or norm.get_parameter("weight").shape[0]
    )
    return Host(type(decoder).__name__, blocks, norm, int(width), layout, visual, layer)


def _is_decoder(module: nn.Module) -> bool:
    # Its own children: torch.compile's wrapper shows the attributes of what it wraps as its own.
    children = dict(module.named_children())
    layers, norm = children.get("layers"), children.get("norm")
    return (
        isinstance(layers, nn.ModuleList)
        and len(layers) > 0
        and all(isinstance(getattr(block, "input_layernorm", None), nn.Module) for block in layers)
        and isinstance(norm, nn.Module)
    )
