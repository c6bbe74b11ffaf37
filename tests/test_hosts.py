"""Recognising hosts: the right blocks, through every wrapper, and errors that say what was found instead."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spatial_forcing.grid import Layout
from spatial_forcing.hosts import HostError, host_of
from spatial_forcing.hosts.tiny import TinyVLA
from spatial_forcing.tap import Host, Tap

MODELS = ("llama", "gemma", "qwen2")
LAYOUT, VISUAL = Layout(views=1, rows=2, cols=2), slice(1, 5)
WHERE = {"layout": LAYOUT, "visual": VISUAL}


class Policy(nn.Module):
    """What a VLA looks like from outside: a vision part, a language model, an action head."""

    def __init__(self, language_model: nn.Module):
        super().__init__()
        self.vision, self.language_model, self.head = (
            nn.Conv2d(3, 32, 14, 14),
            language_model,
            nn.Linear(32, 7),
        )


class Wrapper(nn.Module):
    """Holds a model as DistributedDataParallel (`module`) and LeRobot's policies (`model`) do."""

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        setattr(self, name, model)

    def forward(self, *args, **kwargs):
        return next(self.children())(*args, **kwargs)


def wrapped(how: str, model: nn.Module) -> nn.Module:
    if how == "compiled":
        return torch.compile(model, backend="eager")
    if how == "compiled in module in model":
        return Wrapper("model", Wrapper("module", torch.compile(model, backend="eager")))
    return Wrapper(how, model)


WRAPPERS = ("module", "model", "compiled", "compiled in module in model")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("inside", ["alone", "causal LM", "policy"])
def test_decoders_are_found_and_tapped_where_hugging_face_says(decoder, kind, inside):
    model = decoder(kind, causal_lm=inside == "causal LM")
    base = model.model if inside == "causal LM" else model
    host = host_of(Policy(model) if inside == "policy" else model, **WHERE)
    assert host.name == type(base).__name__
    assert (host.width, len(host.blocks), host.default_layer, host.layout) == (32, 4, 3, LAYOUT)
    words_BL = torch.randint(1, 64, (2, 6))
    hidden = base(input_ids=words_BL, output_hidden_states=True).hidden_states
    for layer in (1, 2, 3):
        tap = Tap(host, layer)
        with tap.watch():
            model(input_ids=words_BL)
        assert torch.equal(tap.visual_BND(), hidden[layer][:, VISUAL])
        tap.detach()


@pytest.mark.parametrize("how", WRAPPERS)
def test_wrappers_of_decoders_are_looked_through(decoder, how):
    model = decoder("llama")
    host = host_of(wrapped(how, model), **WHERE)
    assert host.blocks is model.layers
    assert host.final_norm is model.norm


@pytest.mark.parametrize("how", WRAPPERS)
def test_wrappers_of_models_that_describe_themselves_are_looked_through(how):
    vla = TinyVLA(image_size=28, width=16, heads=2)
    host = host_of(wrapped(how, vla))
    assert host.name == "TinyVLA"
    assert host.blocks[2] is vla.blocks[2]
    assert host.final_norm is vla.final_norm


def test_a_models_own_description_goes_before_what_it_is_made_of(decoder):
    class Described(Policy):
        def spatial_forcing_host(self) -> Host:
            return replace(host_of(self.language_model, **WHERE), name="described")

    assert host_of(Described(decoder("qwen2"))).name == "described"
    # The outermost description counts.
    assert host_of(Wrapper("model", Described(decoder("qwen2")))).name == "described"


def test_what_is_given_goes_before_what_the_model_says():
    vla = TinyVLA(image_size=28, width=16, heads=2)
    own = vla.spatial_forcing_host()
    hidden_BLD = torch.arange(24.0).view(1, 24, 1)
    host = host_of(vla, layout=LAYOUT, visual=VISUAL, layer=2)
    assert (host.layout, host.default_layer, host.entry, host.name) == (LAYOUT, 2, "norm1", "TinyVLA")
    assert host.visual(hidden_BLD).flatten().tolist() == [1, 2, 3, 4]
    host = host_of(vla, layer=1)
    assert (host.layout, host.default_layer) == (own.layout, 1)
    assert torch.equal(host.visual(hidden_BLD), own.visual(hidden_BLD))


def test_visual_may_be_a_function(decoder):
    def last_four(hidden_BLD: Tensor) -> Tensor:
        return hidden_BLD[:, -4:]

    host = host_of(decoder("gemma"), layout=LAYOUT, visual=last_four, layer=2)
    assert host.visual is last_four
    assert host.default_layer == 2


def test_recognising_changes_nothing(decoder):
    model = Policy(decoder("llama"))
    before, state = list(model.named_modules()), copy.deepcopy(model.state_dict())
    host_of(model, **WHERE)
    assert list(model.named_modules()) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("missing", ["layout", "visual"])
def test_a_decoder_without_its_layout_says_what_to_say(decoder, missing):
    given = {name: value for name, value in WHERE.items() if name != missing}
    with pytest.raises(
        HostError, match=r"GemmaModel was recognised \(4 blocks\).*Layout\(views=2.*visual=slice"
    ):
        host_of(decoder("gemma"), **given)


def test_two_decoders_are_listed(decoder):
    model = Policy(decoder("llama"))
    model.expert = decoder("gemma", width=16)
    with pytest.raises(
        HostError, match=r"Policy holds 2 decoders: language_model, expert\. Pass the one"
    ) as error:
        host_of(model, **WHERE)
    assert "host_of(model.language_model" in str(error.value)
    assert host_of(model.expert, **WHERE).width == 16


def test_one_decoder_held_twice_is_one(decoder):
    model = Policy(decoder("llama"))
    model.same = model.language_model
    assert host_of(model, **WHERE).blocks is model.language_model.layers


def test_an_unknown_model_lists_its_parts():
    model = nn.ModuleDict({"vision": nn.Conv2d(3, 8, 14), "policy": nn.GRU(8, 8)})
    with pytest.raises(
        HostError, match=r"ModuleDict is not a host I know.*vision \(Conv2d\), policy \(GRU\)"
    ):
        host_of(model, **WHERE)
    with pytest.raises(HostError, match="It has: no submodules"):
        host_of(nn.Linear(2, 2), **WHERE)


def test_layers_without_an_input_norm_are_no_decoder(decoder):
    model = decoder("llama")
    del model.layers[2].input_layernorm
    with pytest.raises(HostError, match="not a host I know"):
        host_of(model, **WHERE)


def test_a_description_of_the_wrong_kind():
    class Wrong(nn.Module):
        def spatial_forcing_host(self) -> dict:
            return {}

    with pytest.raises(
        HostError, match=r"Wrong\.spatial_forcing_host\(\) must return a spatial_forcing\.Host, got dict"
    ):
        host_of(Wrong())
